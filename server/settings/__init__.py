"""All settings, read once, and the values they consist of; nothing here is started or opened."""
