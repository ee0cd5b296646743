"""Errors that the user can correct, and a run that was asked to stop."""

EXIT_CODE = 2
STOPPED_CODE = 75
"""Exit code of a run that was asked to stop (EX_TEMPFAIL): the same command goes on. train.sbatch requeues the job."""


class UserError(Exception):
    """Bad input: one line that says what was read, what was expected and what to do.

    Entry points print it without a traceback and exit with code 2 on every rank.
    """


class LoneUserError(UserError):
    """A user error of one rank that cannot be communicated to the others; the rank itself prints it."""


class RunStopped(Exception):
    """A signal or run.max_hours has stopped the run, and its state is saved: the same command resumes it.

    Raised on every rank. Entry points exit with `STOPPED_CODE`.
    """
