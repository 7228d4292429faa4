"""The feed of changes: its pages, those who wait for them, and the end of what is old."""
