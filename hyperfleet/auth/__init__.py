"""Who may: tokens and their keys, the access list, the access review, and who the caller is.

It may import settings and errors; it knows no kind of resource and no SQL.
"""
