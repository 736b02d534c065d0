"""The work, the rounds and the tables; slow: the commands themselves, in small, ours only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import results, table
from benchmarks.contest import ROOT, Contender, Entry, contest
from benchmarks.work import Task, Work

WORKER = """
import os, sys, time
from benchmarks.protocol import serve
def prepare(task):
    print("noise on standard output")
    def call(number):
        if number == task.options.get("fails_at"):
            raise ValueError("no more")
        time.sleep(task.options.get("sleep", 0))
        return {"tokens": task.work.useful_tokens(task.job) + task.options.get("more", 0)}
    return call
serve(prepare, packages=("numpy",), device=lambda: "a device")
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "a_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "a_worker"


def entry(name: str, seconds: list[float], *, peer: bool = False, **first: Any) -> Entry:
    calls = [
        {
            "round": number, "seconds": value, "tokens": 1, "peak_memory_gib": 1.0,
            "waiting_cores": 0.0, "foreign_cores": 0.5, "flops": 2e9, "bytes": 1e9,
        }
        for number, value in enumerate(seconds, start=1)
    ]  # fmt: skip
    ready = {"ready": {"python": "3"}, "device": "cpu"}
    first = {"seconds": 9.0} | first
    return Entry(Contender(name, "module", peer=peer), ready, first, calls)


def test_lengths_are_forced_and_fixed() -> None:
    work = Work()
    lengths = work.ragged_lengths()
    assert (lengths.shape, lengths.min(), lengths.max()) == ((16, 8), 8, 128)
    assert abs(lengths.mean() - 40) < 1
    np.testing.assert_array_equal(lengths, Work().ragged_lengths())
    assert work.useful_tokens("sample") == 16 * 8 * 128
    assert work.useful_tokens("ragged") == lengths.sum()
    assert work.useful_tokens("update") == 128 * 160
    for ids in (work.prompt_tokens(), work.batch()):
        assert ids.min() >= 2
        assert ids.max() < work.shape.vocab


def test_a_task_survives_json() -> None:
    task = Task("ragged", Work(size="small"), 2, {"slots": 3})
    assert Task.from_json(task.to_json()) == task


def test_contenders_take_turns(worker: str, capsys: pytest.CaptureFixture[str]) -> None:
    contenders = [Contender("a", worker), Contender("b", worker, options={"sleep": 0.01})]
    entries = contest(contenders, Task("sample", Work(), 1, {}), 2)
    assert [[call["round"] for call in e.calls] for e in entries] == [[1, 2], [1, 2]]
    assert entries[1].calls[0]["seconds"] >= 0.01
    assert entries[0].ready["device"] == "a device"
    said = [line.split(":")[1].strip() for line in capsys.readouterr().err.splitlines()
            if line.startswith("  round")]  # fmt: skip
    assert said == ["a", "b", "b", "a"]


@pytest.mark.slow
def test_who_fails_drops_out_and_is_named(worker: str) -> None:
    contenders = [
        Contender("fails", worker, options={"fails_at": 1}),
        Contender("does more", worker, options={"more": 1}),
        Contender("absent", "no_such_module"),
        Contender("stays", worker),
    ]
    entries = contest(contenders, Task("sample", Work(), 1, {}), 2)
    assert [len(e.calls) for e in entries] == [0, 0, 0, 2]
    fails, more, absent, stays = (e.error.splitlines()[:1] for e in entries)
    assert fails == ["ValueError: no more"]
    assert more == ["made 16385 tokens and 16384 were asked for."]
    assert absent == ["the process ended without an answer"]
    assert stays == []


@pytest.mark.slow
def test_who_says_nothing_is_ended(worker: str) -> None:
    silent = Contender("silent", worker, options={"sleep": 60})
    (found,) = contest([silent], Task("sample", Work(), 1, {}), 1, patience=5.0)
    assert found.error.startswith("no answer within 5 s")


def test_ratios_are_taken_within_rounds() -> None:
    task = Task("sample", Work(), 2, {})
    entries = [
        entry(results.MACHINE, [1.0, 1.0, 1.0]),
        entry("ours", [1.0, 2.0, 4.0]),
        entry("slow", [9.0, 9.0, 9.0], peer=True),
        entry("fast", [2.0, 8.0, 4.0], peer=True),
    ]
    record = results.make_record(entries, task, 3, command="c")
    assert record["contenders"]["ours"]["ratio"] == {"min": 1.0, "median": 2.0, "max": 4.0}
    assert "ratio" not in record["contenders"]["slow"]
    share = record["contenders"]["ours"]["floor_share"]
    assert share == record["floor"]["seconds"] / 2.0
    text = table.markdown(record)
    assert "| ours | 8,192 | 4,096 | 16,384 | 2.00 | 1.00 to 4.00 |" in text
    assert "Disturbed: cores used by other processes in the worst call: ours 0.50" in text


def test_what_facts_cost() -> None:
    entries = [entry("ours", [1.0, 2.0]), entry("ours without", [0.9, 1.0])]
    record = results.make_record(entries, Task("sample", Work(), 2, {}), 2, command="c", facts=True)
    assert record["job"] == "facts"
    assert record["fact_share"]["ours"] == pytest.approx({"min": 0.1, "median": 0.3, "max": 0.5})


def test_other_losses_are_other_work() -> None:
    entries = [entry("ours", [1.0], loss=6.0), entry("other", [1.0], peer=True, loss=6.1)]
    with pytest.raises(ValueError, match="do not compute the same loss"):
        results.make_record(entries, Task("update", Work(), 2, {}), 1, command="c")


def test_commands_hold_no_paths() -> None:
    words = ["--hf-python", "/home/a/python", "--tunix-python=/b", "--out", "/c", "--rounds", "7"]
    assert results.command("benchmarks.rollout", words) == (
        "python -m benchmarks.rollout --hf-python HF_PYTHON --tunix-python=TUNIX_PYTHON "
        "--out OUT --rounds 7"
    )


@pytest.mark.slow
def test_a_peer_is_never_left_out_silently() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rollout", "--size", "nano", "--without", "tunix"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "name its interpreter with --hf-python" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["rollout", "--job", "ragged", "facts", "--slots", "4"], ["ragged-nano", "facts-nano"]),
        (["update", "--microbatches", "4"], ["update-nano"]),
    ],
)
def test_the_commands_run(command: list[str], names: list[str], tmp_path: Path) -> None:
    flags = [
        "--size", "nano", "--only", "ours", "--rounds", "1", "--prompts", "2", "--samples", "4",
        "--prompt-len", "4", "--new-tokens", "8", "--min-len", "2", "--mean-len", "4",
        "--machine", '{"matrix": 64, "mebibytes": 1}', "--out", str(tmp_path),
    ]  # fmt: skip
    tests_own = ("XLA_FLAGS", "JAX_NUMPY_RANK_PROMOTION")  # a benchmark runs without them
    environment = {key: value for key, value in os.environ.items() if key not in tests_own}
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:], *flags],
        cwd=ROOT, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(names)
    for name in names:
        (record,) = results.read(tmp_path / f"{name}.json")
        assert all(len(of["seconds"]) == 1 for of in record["contenders"].values())
        assert record["floor"]["tokens_per_second"] > 0
        assert table.markdown(record) in done.stdout
