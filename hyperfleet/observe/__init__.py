"""What an operator sees: the log, health checks, metrics and traces.

May import only auth, contract, database, engine, errors, kinds and settings.
"""
