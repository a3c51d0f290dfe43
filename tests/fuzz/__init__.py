"""Fuzz test of the command line: damaged inputs and wrong arguments end in one message, never in a traceback."""
