"""Ctrl-C, SIGTERM and a closed terminal: end in good order, and within seconds even where torch does not listen.

Python runs a signal's handler between two of its own instructions, so a convolution that takes ten seconds delays it by
ten seconds. A thread that waits on the signal's wake-up socket is not delayed: it gives the main thread `PATIENCE`
seconds, then removes what must not be left behind and ends the process. A second signal ends it at once.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from soragen.cli import output
from soragen.errors import EXIT_INTERRUPTED
from soragen.leftovers import remove_leftovers

PATIENCE = 1.5
"""Seconds from the first signal to the end of a process that does not end by itself."""

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def interruptible() -> Iterator[None]:
    """While the block runs, the signals above raise KeyboardInterrupt in it, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    listening, waking = socket.socketpair()
    waking.setblocking(False)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    previous = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(listening,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        waking.close()
        watch.join()
        listening.close()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _watch(listening: socket.socket) -> None:
    """Waits for a signal; then for the block to end (the socket closes), a second signal, or the end of patience."""
    ours = {int(number) for number in SIGNALS}
    while received := listening.recv(1):
        if received[0] in ours:
            break
    else:
        return
    deadline = time.monotonic() + PATIENCE
    while select.select([listening], [], [], max(0.0, deadline - time.monotonic()))[0]:
        received = listening.recv(1)
        if not received:
            return
        if received[0] in ours:
            break
    remove_leftovers()
    output.last_words("interrupted")
    os._exit(EXIT_INTERRUPTED)
