"""Every failure a user can meet: one line that says what was wrong, one that says what would work, one exit code.

Exit codes: 0 done, 1 a bug, 2 bad usage or input, 3 weights, 4 memory or disk, 5 output, 6 numerical failure,
130 interrupted.
"""

from __future__ import annotations


class SoragenError(Exception):
    """A failure with a message for the user. `message` says what was wrong, `hint` what would work."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(SoragenError):
    """Bad usage or input: an option, a prompt, a size, a file that cannot be read."""

    exit_code = 2


class WeightsError(SoragenError):
    """Weights that are missing, damaged, or not those of the model they were loaded for."""

    exit_code = 3


class ResourceError(SoragenError):
    """Not enough memory or disk for what was asked."""

    exit_code = 4


class OutputError(SoragenError):
    """The output cannot be written."""

    exit_code = 5


class NumericalError(SoragenError):
    """A network returned values that are not finite."""

    exit_code = 6


EXIT_INTERRUPTED = 130
