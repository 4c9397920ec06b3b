"""Conversations and items in PostgreSQL; callers and gRPC are not known here."""
