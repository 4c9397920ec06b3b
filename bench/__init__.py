"""Benchmarks. Each module prints its figures and the conditions under which it measured them."""
