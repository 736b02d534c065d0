"""Profiles: what is summed up, and that the command runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.profile import by_kind

ROOT = Path(__file__).parents[2]


def test_operations_are_summed_by_kind_and_loops_left_out() -> None:
    events = [
        {"dur": 2e6, "args": {"hlo_op": "dot.7"}},
        {"dur": 1e6, "args": {"hlo_op": "dot.12.clone"}},
        {"dur": 5e6, "args": {"hlo_op": "add_fusion"}},
        {"dur": 9e6, "args": {"hlo_op": "while.3"}},
        {"dur": 9e6, "name": "of the host", "args": {}},
        {"name": "no operation"},
    ]
    assert by_kind(events) == {"add_fusion": (5.0, 1), "dot": (3.0, 2)}


@pytest.mark.slow
def test_the_command_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.profile", "--job", "update", "--size", "nano"],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines()]
    assert "ynn_fusion" in rows or "dot" in rows
