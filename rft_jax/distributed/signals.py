"""Ctrl-C and SIGTERM ask the loop to stop at the next step; a second Ctrl-C does not ask."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], int]]:
    """Yields a function that gives the signal received so far, 0 for none.

    The handlers of before come back at the end. Outside the main thread, where Python takes no
    handlers, signals keep their usual effect.
    """
    received = 0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: received
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
