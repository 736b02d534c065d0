"""What killed processes leave is removed, and what others write is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rft_jax.io.drafts import draft_of, remove_dead, this_process


def test_drafts_of_dead_processes_go_and_others_stay(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from rft_jax.io.drafts import draft_of;"
        "path = draft_of(pathlib.Path(sys.argv[1])); path.write_text('half'); print(path)"
    )
    dead = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "test.jsonl")],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert Path(dead).exists()
    own = draft_of(tmp_path / "test.jsonl")
    foreign = tmp_path / "a.01234567-1-5.tmp"
    old_foreign = tmp_path / "b.01234567-1-5.tmp"
    earlier_version = tmp_path / "c.jsonl.4194305.tmp"  # more than a pid can be
    folder = tmp_path / f"model.{this_process()._replace(started=1)}.tmp"
    other = tmp_path / "notes.tmp"
    for path in (own, foreign, old_foreign, earlier_version, other):
        path.write_text("half")
    folder.mkdir()
    (folder / "inner").write_text("half")
    os.utime(old_foreign, (1, 1))
    remove_dead(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([own, foreign, other])


def test_a_name_says_which_process_it_was() -> None:
    own = this_process()
    assert own.lives()
    assert own._replace(pid=4194305).lives() is False
    assert own._replace(started=1).lives() is False
    assert own._replace(place="elsewhere").lives() is None
