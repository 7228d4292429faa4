"""What an operator sees: the log, the health checks and the metrics.

It may import the database, the contract, the names of kinds and who the caller is.
"""
