"""What a worker with a built-in verifier cannot do, tried in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_TRY = """
import os, socket, subprocess, sys
from rft_jax.verification import sandbox
sandbox.forbid_code()
try:
    exec(ATTEMPT)
except sandbox.Blocked as error:
    print("blocked", error.event)
"""


def attempt(text: str, folder: Path) -> str:
    # The attempt is compiled before the guard is there, as a library's code would be.
    script = _TRY.replace("ATTEMPT", "CODE").replace(
        "sandbox.forbid_code()",
        f"CODE = compile({text!r}, 'attempt', 'exec')\nsandbox.forbid_code()",
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("eval('1 + 1')", "compile"),
        ("exec('x = 1')", "compile"),
        ("compile('1', 'x', 'eval')", "compile"),
        ("os.system('true')", "os.system"),
        ("subprocess.run(['true'])", "subprocess.Popen"),
        ("os.execv('/bin/true', ['true'])", "os.exec"),
        ("os.posix_spawn('/bin/true', ['true'], {})", "os.posix_spawn"),
        ("os.fork()", "os.fork"),
        ("open('made', 'w')", "open"),
        ("os.open('made', os.O_CREAT | os.O_WRONLY)", "open"),
        ("socket.socket().connect(('127.0.0.1', 9))", "socket.connect"),
        ("try:\n    eval('1')\nexcept Exception:\n    print('hidden')", "compile"),
    ],
)
def test_it_is_blocked(text: str, event: str, tmp_path: Path) -> None:
    assert attempt(text, tmp_path) == f"blocked {event}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["print('ran')", "import dataclasses, colorsys; print('ran')"])
def test_what_judging_needs_goes_on(text: str, tmp_path: Path) -> None:
    assert attempt(text, tmp_path) == "ran"


def test_reading_a_file_goes_on(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("ran")
    assert attempt("print(open('there').read())", tmp_path) == "ran"
