"""What has changed: the feed and its followers, past generations, and the audit.

May import only auth, database, engine, errors, kinds, lists and settings.
"""
