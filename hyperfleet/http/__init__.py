"""The edge: what holds for every request, whatever it asks for, in layers with one job each.

It may import the contract, who the caller is, the database, settings, errors and what is observed; it
knows no handler and no kind of resource.
"""
