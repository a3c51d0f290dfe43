"""The exception for problems that a user can fix."""


class UserError(ValueError):
    """A problem that the user can fix: bad input, a wrong setting, a damaged file.

    The message is one sentence that names the cause and the fix. Commands print it and exit with code 2; every other
    exception is a bug and keeps its traceback.
    """
