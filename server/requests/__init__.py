"""What a request may say: its validation, filters, field masks and page tokens."""
