"""The commands of the command line, a module each.

They may import everything; nothing but the command line imports them.
"""
