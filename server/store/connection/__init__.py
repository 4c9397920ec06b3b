"""The way to PostgreSQL: the pool, and how statements share it."""
