"""The commands of the command line, a module each, and where their settings come from.

They may import everything; nothing but the command line imports them.
"""
