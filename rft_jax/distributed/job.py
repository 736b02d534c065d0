"""The job that a command is part of: joined before the work, and left in order, or at once."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator

import jax

from rft_jax.distributed.collectives import is_main, join, meet, store
from rft_jax.distributed.watchdog import EXIT_LOST, Limits, Watch
from rft_jax.errors import UserError

EXIT_USER = 2
"""Exit status of an error that the user can mend."""


@contextlib.contextmanager
def joined(limits: Limits) -> Iterator[Callable[[str], None]]:
    """Within it this process is part of the job it was started in, if there is one. Yields what is
    to be told where the work is (watchdog.py).

    An error ends the process at once, with all that waits for the others, and tells them why; alone
    it goes on its way. Of a UserError one line says all.
    """
    try:
        several = join(limits.lost_after)
    except RuntimeError as error:  # others that came too late, or not at all
        print(f"rft-jax: error: the job was not joined ({_first_line(error)})", file=sys.stderr)
        raise SystemExit(EXIT_LOST) from error
    if not several:
        yield lambda _: None
        return
    if not is_main():
        logging.getLogger("rft_jax").setLevel(logging.WARNING)
    watch = Watch(store(), jax.process_index(), jax.process_count(), limits)
    try:
        yield watch.at
        watch.at("the end")
        meet("the end")
    except BaseException as error:
        _end(watch, error)
    watch.done()
    jax.distributed.shutdown()


def _end(watch: Watch, error: BaseException) -> None:
    if isinstance(error, jax.errors.JaxRuntimeError):
        # More often than not it is an exchange whose other side is gone: the watch names that one.
        print(f"rft-jax: {_first_line(error)}", file=sys.stderr, flush=True)
        watch.wait_for_verdict()
    if isinstance(error, UserError):
        print(f"rft-jax: error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stderr.flush()
    sys.stdout.flush()
    status = EXIT_USER if isinstance(error, UserError) else EXIT_LOST
    watch.failed(_first_line(error), status)
    # Not by sys.exit: devices and atexit handlers would wait for processes that come no more.
    os._exit(status)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
