"""PostgreSQL: connections, the pool, the embedded server and the migrations.

It may import settings, errors and the two small modules on files and on greenlets.
"""
