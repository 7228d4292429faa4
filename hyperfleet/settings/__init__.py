"""Settings: their declarations, possible values, and the ways to write them.

They include the kinds that an operator declares, and the dimensions of tenants.
May import errors, kinds and nearest.
"""
