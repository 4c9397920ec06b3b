"""Builds the service from its settings, supervises workers, runs background tasks; no logic of calls."""
