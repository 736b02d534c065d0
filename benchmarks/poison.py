"""A verifier that its input can hurt: what the fault injection of `verifier_faults` judges with.

An output `#### N` is judged by the rule `hash`; `poison KIND` does the harm of that name.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import time

from rft_jax.types import Judgement
from rft_jax.verification.rules import VerifierSpec, load_verifier

_hash = load_verifier(VerifierSpec("hash"))


def judge(reference: str, output: str) -> Judgement | bool:
    """Do what the output names, or judge it."""
    if not output.startswith("poison "):
        return _hash(reference, output)
    kind = output.removeprefix("poison ")
    if kind == "hang":
        time.sleep(3600)
    elif kind == "hang-in-c":
        re.match("(a*)*b", "a" * 60)
    elif kind == "segfault":
        ctypes.string_at(0)
    elif kind == "exit":
        os._exit(3)
    elif kind == "allocate":
        held = []
        while True:
            held.append(bytearray(1 << 26))
    elif kind == "print":
        sys.stdout.write("x" * 100_000)
    elif kind == "fork":
        os.fork()
    return True
