"""What handlers share: finding, locking, changing and removing a resource, and what refers to it.

It may import the status, what is kept of changes, and the database; it knows no handler.
"""
