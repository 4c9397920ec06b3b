"""A Python client that tries every method: `python -m tests.interop.python`."""
