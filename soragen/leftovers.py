"""What must not outlive the process: half-written files, programs it started.

A `with` block or `finally` removes them in good order. This list is for the one case in which neither runs: the process
has to end while a long operation of torch holds the main thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_removals: list[Callable[[], object]] = []


@contextmanager
def leftover(remove: Callable[[], object]) -> Iterator[None]:
    """While the block runs, `remove` is called, in another thread, if the process has to end at once."""
    _removals.append(remove)
    try:
        yield
    finally:
        _removals.remove(remove)


def remove_leftovers() -> None:
    """Calls what is registered, the newest first, whatever each of them raises."""
    for remove in reversed(_removals):
        with contextlib.suppress(Exception):
            remove()
