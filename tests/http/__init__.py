"""The HTTP edge, over the wire."""
