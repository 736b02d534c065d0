"""Verifiers for the tests of the pool; each item's output says what its verifier does."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from rft_jax.types import Judgement, Verdict

NOT_A_FUNCTION = 3


class NotAFunction:
    """A class that could be called with two arguments."""

    def __init__(self, reference: str, output: str) -> None: ...


def one_argument(output: str) -> bool:
    """Does not take what a verifier is given."""
    return True


async def later(reference: str, output: str) -> bool:
    """Would return an awaitable."""
    return True


def none(reference: str, output: str) -> None:
    """Judges nothing."""


def two(reference: str, output: str) -> int:
    """Says more than a reward can be."""
    return 2


def fails(reference: str, output: str) -> bool:
    """Does not know what it is given."""
    raise TypeError(f"not {output!r}")


def check_none(output: str) -> None:
    """A check that says nothing."""


class _Code:
    """Unpickling it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.path, "w")


def to_all_descriptors(data: bytes) -> None:
    """Write it to all that this process could have been given."""
    for descriptor in range(3, 1024):
        with suppress(OSError):
            os.write(descriptor, data)


def leave_daemon(path: str) -> None:
    """Fork, begin a session, fork again; the last one writes its number and stays."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            with open(path + ".part", "w") as file:
                file.write(str(os.getpid()))
            os.rename(path + ".part", path)
            time.sleep(600)
        os._exit(0)
    os.wait()
    while not os.path.exists(path):
        time.sleep(0.001)


def act(reference: str, output: str) -> Judgement | bool:
    """Do what `output` names; any other output is compared with the reference as text."""
    action, _, argument = output.partition(" ")
    if action == "sleep":
        time.sleep(float(argument))
    elif action == "hang-in-c":
        re.match("(a*)*b", "a" * 60)
    elif action == "exit":
        os._exit(3)
    elif action == "segfault":
        ctypes.string_at(0)
    elif action == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif action == "raise":
        raise KeyError(argument)
    elif action == "library":
        json.loads("")
    elif action == "long":
        raise KeyError("x" * 1_000_000)
    elif action == "sys.exit":
        sys.exit(0)
    elif action == "print":
        print("x" * 100_000)
    elif action == "read":
        return Judgement(Verdict.CORRECT, f"read {sys.stdin.read()!r}")
    elif action == "pickle":
        data = pickle.dumps(_Code(argument))
        to_all_descriptors(data + struct.pack("<q", len(data)) + data)
    elif action == "length":
        for form in ("<i", ">i", "<q", ">q"):
            to_all_descriptors(struct.pack(form, 2**31 - 1))
    elif action == "text":
        verdicts = json.dumps([["correct", "forged"]] * 300)
        to_all_descriptors(f"{verdicts}\n[[[\n\xff".encode())
    elif action == "write-for-ever":
        while True:
            to_all_descriptors(b"x" * 4096)
    elif action == "close":
        os.closerange(3, 1024)
    elif action == "daemon":
        leave_daemon(argument)
    elif action == "daemon-and-hang":
        leave_daemon(argument)
        time.sleep(600)
    elif action == "daemon-and-exit":
        leave_daemon(argument)
        os._exit(3)
    elif action == "bad-verdict":
        return Judgement("perhaps", "no such verdict")  # type: ignore[arg-type]
    elif action == "modules":
        loaded = {name.partition(".")[0] for name in sys.modules}
        return Judgement(Verdict.CORRECT, " ".join(sorted(loaded & set(argument.split()))))
    elif action == "environment":
        return Judgement(Verdict.CORRECT, repr(os.environ.get(argument)))
    elif action == "path":
        return output.removeprefix("path ") == "\n".join(sys.path)
    elif action == "main":
        return Judgement(Verdict.CORRECT, str(getattr(sys.modules["__main__"], "__file__", None)))
    elif action == "pid":
        return Judgement(Verdict.CORRECT, str(os.getpid()))
    elif action == "child":
        child = subprocess.Popen(["sleep", "600"])
        with open(argument, "w") as file:
            file.write(str(child.pid))
        time.sleep(600)
    elif action == "allocate":
        held = []
        while True:
            held.append(bytearray(1 << 24))
    elif action == "fork-twice":
        os.fork()
    elif action == "detached-child":
        # It holds the worker's pipes open beyond the worker's own end.
        if os.fork() == 0:
            os.setsid()
            time.sleep(2)
            os._exit(0)
        os._exit(3)
    return output == reference
