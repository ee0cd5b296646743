"""Errors that the user can correct, and a run that was asked to stop."""

import re

EXIT_CODE = 2
STOPPED_CODE = 75
"""Exit code of a run that was asked to stop (EX_TEMPFAIL): the same command goes on. train.sbatch requeues the job."""

# Controls, among them those that change the direction of text, line separators, and halves of surrogate pairs.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """Bad input: one line that says what was read, what was expected and what to do.

    Entry points print it without a traceback and exit with code 2 on every rank.
    """

    def __init__(self, message: str) -> None:
        # A message may quote names and rows, which could break the line or act on the terminal.
        super().__init__(printable(message))


class LoneUserError(UserError):
    """A user error of one rank that cannot be communicated to the others; the rank itself prints it."""


def printable(text: str, *, keep: str = "") -> str:
    """The text with escapes for the characters that act on a terminal or cannot be written, except those to `keep`."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


class RunStopped(Exception):
    """A signal or run.max_hours has stopped the run, and its state is saved: the same command resumes it.

    Raised on every rank. Entry points exit with `STOPPED_CODE`.
    """
