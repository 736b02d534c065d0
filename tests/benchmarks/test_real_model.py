"""The rehearsal of real use, at a size that takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_published_model_there_and_back(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.real_model", str(tmp_path / "rehearsal")]
    done = subprocess.run(
        [*command, "--layers", "1", "--width", "256"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    steps = [row.split("|")[1].strip() for row in rows]
    assert steps == ["step", "make", "import", "run", "convert", "compare"]
    assert "complaints 0, relative_error " in rows[-1]
