"""Benchmarks, run by hand or with ``make bench``."""
