"""This process: its devices and compiled programs, the job it is part of, and when it stops."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import jax

from rft_jax.config import MeshConfig
from rft_jax.distributed.collectives import is_main, join, meet, store
from rft_jax.distributed.mesh import cpu_device_count
from rft_jax.distributed.watchdog import EXIT_LOST, Limits, Watch
from rft_jax.errors import TemporaryError, UserError

EXIT_USER = 2
"""Exit status of an error that the user can fix."""
CACHE_DIR = "~/.cache/rft_jax/xla"
"""Compiled programs, kept between starts; JAX_COMPILATION_CACHE_DIR names another folder."""
CACHE_MIN_SECONDS = 0.5
"""Shortest compilation that is kept; JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS sets another."""


logger = logging.getLogger(__name__)


@contextlib.contextmanager
def joined(limits: Limits) -> Iterator[Callable[[str], None]]:
    """Within it this process is part of the job it was started in, if there is one. Yields what is
    to be told where the work is (watchdog.py).

    An error ends the process at once, with all that waits for the others, and tells them why; it is
    only raised where there are no others. A UserError is told in one line.
    """
    try:
        several = join(limits.lost_after)
    except RuntimeError as error:  # others that came too late, or not at all
        raise TemporaryError(f"the job was not joined ({_first_line(error)})") from error
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
    again = isinstance(error, TemporaryError) or not isinstance(error, UserError)
    status = EXIT_LOST if again else EXIT_USER
    watch.failed(_first_line(error), status)
    # Not by sys.exit: devices and atexit handlers would wait for processes that come no more.
    os._exit(status)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], int]]:
    """Has Ctrl-C, SIGTERM and SIGHUP (the terminal is closed) ask the loop to stop at the next
    step; a second Ctrl-C does not ask. Under nohup, which ignores SIGHUP, that stays so.

    Yields a function that gives the signal received so far, 0 for none. The earlier handlers come
    back at the end. Outside the main thread, where Python takes no handlers, signals keep their
    usual effect.
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
    before = {
        number: signal.signal(number, ask)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_programs() -> None:
    """Keep compiled programs between starts, unless the environment says otherwise."""
    folder = Path(os.path.expanduser(CACHE_DIR))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and not _is_writable(folder):
        logger.warning("%s cannot be written: each start compiles all programs", folder)
        return
    settings: dict[str, str | float] = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": CACHE_MIN_SECONDS,
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return folder.is_absolute() and os.access(folder, os.W_OK)  # no user, no home: ~ stays


def split_cpu(meshes: Sequence[MeshConfig], rows: Sequence[int]) -> None:
    """Where there is no accelerator, one simulated device per core, as far as meshes and rows of
    micro-batches allow, unless the environment says how many or devices are in use already."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in flags:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # RuntimeError: devices are in use, of an earlier run in the same process.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cpu_device_count(meshes, rows, cores or 1))
