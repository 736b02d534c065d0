"""A checker of one's own for answers that are programs: a function against the tests of its row.

A row holds, beside question and answer, the name of the function and tests of [arguments, value]:

    {"question": "Write double(x).", "answer": "", "function": "double",
     "tests": [[[2], 4], [[-1], -2]], "solution": "```python\\ndef double(x): return 2 * x\\n```"}

    PYTHONPATH=experiments rft-jax run FILE --RUN.verification.verifier code_checker:passed

The reward is the share of tests passed; verification.threshold says how many are enough, all of
them by default. A program that fails, hangs or takes too much memory has not passed.

What it has: the program runs in an interpreter of its own, without the environment, and is given
arguments only, never the values that are expected, so that it cannot say itself that it passed.
There it may start no programs, open no connections and write no files (rft_jax's audit hook), and
has bounded time, memory and output. With its worker everything that is left of it is killed.
What it has not: an audit hook is no wall. Code that means harm can get around it (with ctypes, for
one), read your files and signal your processes. Run what you do not trust in a container without
network, as a user of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from typing import Any

SECONDS = 2.0
"""Of all tests of a program together; less than verification.timeout_seconds."""
MEMORY_MB = 256

_BLOCK = re.compile(r"```(?:python)?\n(.*?)```", re.DOTALL)

# Results go to the first standard output; what the program prints goes nowhere.
_RUN = """
import sys; sys.path[:] = sys.argv[1:]
import json, os, resource
from rft_jax.verification import sandbox
task = json.load(sys.stdin)
results = os.dup(1)
nowhere = os.open(os.devnull, os.O_RDWR)
for descriptor in range(3):
    os.dup2(nowhere, descriptor)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
sandbox.limit_memory(task["memory_mb"])
sandbox.ProcessorTime(task["seconds"], 1).allow()
sandbox.forbid_code(compiling=False)
names = {"__name__": "answer"}
exec(task["program"], names)
told = []
for arguments in task["arguments"]:
    try:
        told.append(json.dumps(names[task["function"]](*arguments), sort_keys=True))
    except Exception:
        told.append("")
os.write(results, json.dumps(told).encode())
os._exit(0)
"""

_DOUBLE = {"question": "Write double(x).", "reference": "", "function": "double"}
_TESTS = [[[2], 4], [[-1], -2]]
examples = [
    {**_DOUBLE, "tests": _TESTS, "output": f"```python\n{program}\n```", "expected": expected}
    for program, expected in (
        ("def double(x): return 2 * x", "correct"),
        ("def double(x): return x ** 2", "incorrect"),
        ("def twice(x): return 2 * x", "incorrect"),
        ('print(\'["4", "-2"]\'); import os; os._exit(0)', "incorrect"),
    )
]
"""Tried before the first step of a run."""


def passed(
    question: str, reference: Any, output: str, function: str, tests: list[Any], **fields: Any
) -> float:
    """The share of the tests that the function in the last block of code passes."""
    blocks = _BLOCK.findall(output)
    if not blocks:
        return 0.0
    told = results(blocks[-1], function, [arguments for arguments, _ in tests])
    expected = [json.dumps(value, sort_keys=True) for _, value in tests]
    return sum(map(str.__eq__, told, expected)) / len(tests)


def results(program: str, function: str, arguments: list[Any]) -> list[str]:
    """What the function of a program returns for each of these arguments, as JSON; a text that is
    none where it fails, and nothing at all where the program does."""
    task = {
        "program": program,
        "function": function,
        "arguments": arguments,
        "seconds": SECONDS,
        "memory_mb": MEMORY_MB,
    }
    with tempfile.TemporaryFile() as file:
        try:
            subprocess.run(
                [sys.executable, "-I", "-S", "-c", _RUN, *sys.path],
                input=json.dumps(task).encode(),
                stdout=file,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS,
                env={},
                check=True,
            )
            file.seek(0)
            told = json.load(file)
        except (subprocess.SubprocessError, ValueError):
            return []
    return told if isinstance(told, list) else []
