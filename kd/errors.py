"""Errors that the user can correct."""

EXIT_CODE = 2


class UserError(Exception):
    """Bad input: one line that says what was read, what was expected and what to do.

    Entry points print it without a traceback and exit with code 2 on every rank.
    """


class LoneUserError(UserError):
    """A user error of one rank that cannot be communicated to the others; the rank itself prints it."""
