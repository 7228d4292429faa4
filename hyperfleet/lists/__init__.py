"""Lists: from the parameters of a request to the text of a page, in one direction.

What may be asked for comes from the contract's schemas; the statement is made here, and run by
:mod:`hyperfleet.lists.page`.
"""
