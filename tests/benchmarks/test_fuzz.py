"""The fuzz of the commands: it reproduces its inputs, tells endings apart, finds nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from benchmarks.fuzz import attempt, inputs, material, odd

HERE = Path(__file__).parents[2]

GOOD = attempt.Ending("rows:1", ["verify"], "what", False, 0, 1.0, 2**20, "", "", Path())
MATERIAL = material.Material(Path(), {"sample x": "as it was"})
ERROR = "rft-jax: error: the thing is wrong: fix it.\n"
TRACEBACK = """Traceback (most recent call last):
  File "/x/rft_jax/commands/main.py", line 1, in main
    f()
  File "/x/rft_jax/io/paths.py", line 2, in write
    g()
  File "/x/lib/json.py", line 2, in g
    h()
json.decoder.JSONDecodeError: no
"""


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({}, None),
        ({"status": 2, "stderr": f"INFO: begun\n{ERROR}"}, None),
        ({"status": 1, "words": ["plan"]}, None),
        ({"status": 2}, "status 2 with 0 error lines"),
        ({"status": 2, "stderr": ERROR * 2}, "status 2 with 2 error lines"),
        ({"status": 2, "stderr": f"{ERROR}and more"}, "lines after the error: and more"),
        ({"status": 2, "stderr": ERROR + "\n"}, None),
        ({"status": 2, "stderr": f"{ERROR[:-2]}{'x' * 5000}"}, "a line of over 4000 characters"),
        ({"status": 0, "stderr": ERROR}, "status 0 with an error line"),
        ({"status": 1, "stderr": TRACEBACK}, "JSONDecodeError in rft_jax/io/paths.py:write"),
        ({"status": 139}, "status 139: nothing said"),
        ({"status": None}, "hang"),
        ({"resident": 2**40}, "memory: 1024.0 GiB"),
    ],
)
def test_endings_are_told_apart(changes: dict[str, object], cause: str | None) -> None:
    assert attempt.cause(GOOD._replace(**changes), MATERIAL) == cause


def test_an_outcome_is_compared(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "o.jsonl").write_text("another")
    ending = GOOD._replace(words=["sample", "x"], compare=True, folder=tmp_path)
    assert attempt.cause(ending, MATERIAL) == "another outcome, unseen: what"
    (tmp_path / "here" / "o.jsonl").write_text("as it was")
    assert attempt.cause(ending, MATERIAL) is None


def small(folder: Path) -> material.Material:
    return material.make(folder / "material", whole=False)


@pytest.mark.parametrize("kind", ["command_line", "field", "experiment", "rows"])
def test_a_seed_and_a_number_give_one_input(kind: str, tmp_path: Path) -> None:
    made = []
    for at in ("a", "b"):
        (tmp_path / at).mkdir()
        found = inputs.make(kind, 3, 7, small(tmp_path), tmp_path / at)
        files = {
            path.name: path.read_bytes()
            for path in odd.files(tmp_path / at)
            if path.stat().st_mode & 0o400
        }
        made.append((found, files))
        odd.remove(tmp_path / at)
    assert made[0] == made[1]


def test_every_way_of_damage_is_drawn(tmp_path: Path) -> None:
    ways = set()
    for number in range(300):
        folder = tmp_path / str(number) / "inner"
        folder.mkdir(parents=True)
        path = folder / "x.jsonl"
        path.write_text('{"a": [1, {"b": "text"}]}\n{"a": 2}\n')
        (folder / "y.json").write_text(json.dumps({"c": 1.5}))
        ways.add(odd.damage(path, Random(number)))
    assert len(ways) == len({way.__name__ for way in odd.WAYS}) + 2


def fuzz(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz", "--folder", str(folder), *words],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_words_files_and_rows_end_in_a_result_or_one_line(tmp_path: Path) -> None:
    said = fuzz(tmp_path, "--inputs", "60", "--kinds", "command_line", "experiment")
    assert "60 inputs in" in said


@pytest.mark.slow
def test_workdirs_and_models_end_in_a_result_or_one_line(tmp_path: Path) -> None:
    said = fuzz(tmp_path, "--inputs", "16", "--kinds", "rows", "field", "workdir", "model")
    assert "16 inputs in" in said
