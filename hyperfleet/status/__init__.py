"""Computes the status of a resource from the reports of adapters.

Pure. May import settings, for an operator's own conditions, and the definition of kinds.
"""
