"""Measurements; run by hand, or all by ``make bench``."""
