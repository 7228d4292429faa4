"""How plain functions wait on the event loop: greenlets, turns, and responses that come later.

It may import errors alone.
"""
