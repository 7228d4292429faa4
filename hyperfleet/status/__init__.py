"""Reports in, status out: what adapters say, and what the status of a resource comes to.

It is pure. It may import settings, for an operator's own conditions, and what a kind is.
"""
