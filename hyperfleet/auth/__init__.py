"""Authentication and authorization: tokens and keys, the access list and review, the caller, tenants.

May import settings, errors and watched files; it knows no kind of resource and no SQL.
"""
