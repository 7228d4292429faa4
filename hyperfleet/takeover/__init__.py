"""Taking over what a running original holds, from its database or over its API.

``rows`` says what can be taken and why something can't, ``database`` and ``api`` read, ``target``
writes, and ``passes`` goes through all of it, once or again and again.
"""
