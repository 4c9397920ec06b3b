"""The suite: over the wire, on a real PostgreSQL."""
