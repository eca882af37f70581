"""The `soragen` program and `python -m soragen`: interrupted is interrupted, from the first import to the last line."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Runs the command line and returns the exit code."""
    try:
        from soragen import cli

        code = cli.main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done: what is left is the end of the interpreter
        return code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
