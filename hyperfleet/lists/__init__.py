"""Lists: from the parameters of a request to the text of a page, in one direction.

What may be asked for comes from the contract's schemas; statements are built here and run by
:mod:`.page`. May import only contract, database, errors, kinds, nearest, settings and storable.
"""
