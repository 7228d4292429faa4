"""What an operator may say: every setting, what its value may be, and the ways to write it down.

The kinds that an operator declares are a setting too, and so is what tells tenants apart.
It may import errors, the native kinds and the name that was meant.
"""
