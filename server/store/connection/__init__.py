"""The connections to PostgreSQL: the pool, and how statements share it."""
