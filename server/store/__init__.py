"""Conversations and items in PostgreSQL: schema, statements, and the way to run them."""
