"""How plain functions wait on the event loop: greenlets, turns, and responses that come later.

May import only errors.
"""
