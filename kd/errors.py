"""The one error that is the user's to mend."""

EXIT_CODE = 2


class UserError(Exception):
    """Bad input: one line that says what was read, what was expected and what to do.

    Entry points print it without a traceback and exit with code 2 on every rank.
    """
