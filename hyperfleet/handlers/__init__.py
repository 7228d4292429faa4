"""One plain function for each operation of the contract, with its SQL beside it.

May import only auth, changes, database, engine, errors, kinds, lists, resources, service, settings,
status and times.
"""
