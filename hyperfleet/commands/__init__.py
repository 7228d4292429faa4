"""The commands of the command line, one module each, and where their settings come from.

They may import everything; nothing but the command line imports them.
"""
