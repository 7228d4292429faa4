"""What an operator sees: the log, the health checks and the metrics.

It may import the database and the contract.
"""
