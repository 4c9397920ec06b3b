"""The tables, and the statements on them, compiled once for each shape; nothing is executed here."""
