"""PostgreSQL: connections, the pool, the embedded server and the migrations.

May import only settings, errors, engine and files.
"""
