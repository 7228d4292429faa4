"""PostgreSQL: connections, the pool, the embedded server and the migrations.

It may import settings, errors, the engine and where files lie.
"""
