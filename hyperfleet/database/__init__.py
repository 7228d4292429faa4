"""PostgreSQL: connections, the pool, the embedded server and the migrations.

It may import settings and errors alone.
"""
