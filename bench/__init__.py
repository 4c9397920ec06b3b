"""Measurements; each prints what it measured and with what."""
