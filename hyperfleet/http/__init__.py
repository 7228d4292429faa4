"""The edge: what holds for every request, whatever it asks for, in layers with one job each.

May import the contract, authentication, the database, the engine, settings, errors, kinds, watched files
and what is observed; it knows no handler.
"""
