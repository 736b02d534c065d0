"""One input in a process of its own: bounded in time and memory, and judged by how it ends."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.fuzz import inputs
from benchmarks.fuzz.material import Material, outcome
from rft_jax.commands.main import main

ADDRESSES = 8 * 2**30
"""Bytes of address space that a process may take; the libraries alone map several GiB."""
SECONDS = 60
"""Of a processor that a process may take."""
RESIDENT = 3 * 2**30
"""Bytes in memory past which an ending is a finding."""
LONGEST_LINE = 4000
"""Characters of an error's line."""


class Ending(NamedTuple):
    """status: as of a shell, None past the deadline. words, what: of the input."""

    label: str
    words: list[str]
    what: str
    compare: bool
    status: int | None
    seconds: float
    resident: int
    stdout: str
    stderr: str
    folder: Path

    @property
    def kind(self) -> str:
        """Of the input."""
        return self.label.partition(":")[0]


class Attempt:
    """A running input."""

    def __init__(self, kind: str, seed: int, number: int, material: Material, folder: Path) -> None:
        self.label = f"{kind}:{number}"
        self.folder = folder
        self.began = time.monotonic()
        folder.mkdir(parents=True)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _child(lambda here: inputs.make(kind, seed, number, material, here), folder)

    def ended(self, deadline: float) -> Ending | None:
        """How it ended; None while it runs. Kills it, and what it started, past the deadline."""
        pid, wait_status, usage = os.wait4(self.pid, os.WNOHANG)
        late = time.monotonic() - self.began > deadline
        if not pid and not late:
            return None
        _kill(self.pid)
        if not pid:
            _, wait_status, usage = os.wait4(self.pid, 0)
        facts: dict[str, Any] = {"words": [], "what": "", "compare": False}
        if (self.folder / "input.json").exists():
            facts = json.loads((self.folder / "input.json").read_text())
        code = os.waitstatus_to_exitcode(wait_status)
        return Ending(
            self.label,
            facts["words"],
            facts["what"],
            facts["compare"],
            None if late and not pid else 128 - code if code < 0 else code,
            time.monotonic() - self.began,
            usage.ru_maxrss * 1024,
            _text(self.folder / "stdout"),
            _text(self.folder / "stderr"),
            self.folder,
        )


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _child(make: Callable[[Path], inputs.Input], folder: Path) -> None:
    """Be the process of an input: never returns."""
    status = 70
    try:
        os.setsid()
        here = folder / "here"
        here.mkdir()
        made = make(here)
        (folder / "input.json").write_text(json.dumps(made._asdict()))
        os.chdir(here)
        sys.path.insert(0, str(here))  # as for `python -m`; workers look there for verifiers
        os.environ["PYTHONPATH"] = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _drop_privileges()
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        try:
            status = main(made.words)
        except BaseException:
            status = 1
            traceback.print_exc()
        threading._shutdown()  # type: ignore[attr-defined]  # as at the end of every process
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _drop_privileges() -> None:
    """As root: give up reading what nobody may. (Root still owns /dev: no input writes there.)"""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
        if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
            raise OSError(ctypes.get_errno(), "capset")


def cause(ending: Ending, material: Material) -> str | None:
    """What is wrong with an ending, in the words that ends of one cause share; None if nothing."""
    if ending.status in (None, 128 + signal.SIGXCPU, 128 + signal.SIGKILL):
        return "hang"
    if ending.resident > RESIDENT:
        return f"memory: {ending.resident / 2**30:.1f} GiB"
    if "Traceback (most recent call last)" in ending.stderr:
        return _last_frame(ending.stderr)
    lines = [line for line in ending.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("rft-jax: error: ")]
    if ending.status in (2, 75):
        if len(errors) != 1:
            return f"status {ending.status} with {len(errors)} error lines"
        if lines[-1] != errors[0]:
            return f"lines after the error: {lines[-1][:80]}"
        if len(errors[0]) > LONGEST_LINE:
            return f"a line of over {LONGEST_LINE} characters"
        return None
    if ending.status == 1 and ending.words[:1] == ["plan"] and not errors:
        return None  # it does not fit
    if ending.status != 0:
        return f"status {ending.status}: {(lines or ['nothing said'])[-1][:80]}"
    if errors:
        return "status 0 with an error line"
    wanted = material.expected.get(" ".join(ending.words)) if ending.compare else None
    if wanted is not None:
        try:
            found = outcome(ending.words, ending.folder / "here")
        except (OSError, ValueError, KeyError) as error:
            return f"no outcome to compare: {type(error).__name__}"
        if found != wanted:
            return f"another outcome, unseen: {re.sub('[0-9a-f]{32}', 'HASH', ending.what)}"
    return None


def _last_frame(text: str) -> str:
    """`TYPE in FILE:FUNCTION` of the last frame of this package in a traceback."""
    frames = re.findall(r'File "[^"]*/(rft_jax/[^"]+)", line \d+, in (\S+)', text)
    named = re.findall(
        r"^[\w.]*?(\w+(?:Error|Exception|Exit|Interrupt|Warning|Group))\b", text, re.M
    )
    kind = named[-1] if named else "an exception"
    if frames:
        return f"{kind} in {':'.join(frames[-1])}"
    return f"{kind} outside of rft_jax: {text.strip().splitlines()[-1][:80]}"
