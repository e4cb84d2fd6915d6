"""What a person can mend is one class; everything else is a bug and keeps its traceback."""


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where, and what to do. The command line prints it and exits with 2."""
