"""The commands of the command line, one module each, and where their settings come from.

May import everything; only the command line imports them.
"""
