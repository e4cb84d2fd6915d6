"""Errors that a user can mend are one class; every other exception is a bug and keeps its traceback."""


class UserError(Exception):
    """Bad input, in one line: what is wrong, where, and what to do. The command line prints it and exits with 2."""
