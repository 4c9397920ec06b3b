"""Measures watches: how late changes are told, what watches cost, and whether the targets are met."""
