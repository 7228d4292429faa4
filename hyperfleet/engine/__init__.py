"""How plain functions wait on the event loop: their greenlets, their turns, and answers that come later.

It may import errors alone.
"""
