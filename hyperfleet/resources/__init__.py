"""What handlers share: finding, locking, changing and removing resources and their references.

May import the status, the feed and audit of changes, and the database, but no handler.
"""
