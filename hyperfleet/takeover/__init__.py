"""Importing from a running original, from its database or over its API.

``rows`` decides what can be stored and why something cannot, ``database`` and ``api`` read, ``target``
writes, and ``passes`` goes through all of it. May import resources, contract and database, no handler.
"""
