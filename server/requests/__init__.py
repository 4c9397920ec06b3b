"""Requests of callers: validation, filters, field masks, page tokens."""
