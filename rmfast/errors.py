"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """Bad input: its message is one line that says what is wrong, where, and how to mend it.

    The commands print it without a traceback and end with exit code 2.
    """
