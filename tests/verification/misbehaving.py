"""Verifiers for the tests of the pool; each item's output says what its verifier does."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time

from rft_jax.types import Judgement, Verdict

NOT_A_FUNCTION = 3


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
    elif action == "sys.exit":
        sys.exit(0)
    elif action == "print":
        print("x" * 100_000)
    elif action == "read":
        return Judgement(Verdict.CORRECT, f"read {sys.stdin.read()!r}")
    elif action == "none":
        return None  # type: ignore[return-value]
    elif action == "bad-verdict":
        return Judgement("perhaps", "no such verdict")  # type: ignore[arg-type]
    elif action == "modules":
        return Judgement(Verdict.CORRECT, " ".join(sorted(sys.modules)))
    elif action == "environment":
        return Judgement(Verdict.CORRECT, repr(os.environ.get(argument)))
    elif action == "path":
        return Judgement(Verdict.CORRECT, "\n".join(sys.path))
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
