"""What has changed: the feed and who follows it, past generations, and the record of who did what.

It may import lists, whose searches the feed takes too, and the database.
"""
