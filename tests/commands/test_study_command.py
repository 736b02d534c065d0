"""`rft-jax study`: the order of its runs, what chooses, how it resumes, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import tiny_study

from rft_jax.commands import main as cli
from rft_jax.commands import run as running
from rft_jax.commands import study as studies
from rft_jax.config import Config
from rft_jax.observe.log import MetricsLog
from rft_jax.runs.state import RunResult

TESTS = os.pathsep.join(str(folder) for folder in Path(__file__).parents[1:3])
VALIDATION = {"rft": ([1, 4], [2, 2]), "online_rft": ([1, 1], [1, 2])}
"""Correct outputs of 4 on two questions, by arm and try."""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    tiny_study.write_study(tmp_path)
    with checkpoints.command_line():
        yield


class Runs:
    """Stands for running.carry_out: leaves what the runs would, and records which began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began: list[str] = []
        self.stops_at = ""
        monkeypatch.setattr(running, "carry_out", self)
        monkeypatch.setattr(studies, "is_finished", lambda run, _: (run / "finished.json").exists())
        # It takes seconds.
        monkeypatch.setattr(studies.reports, "figure", lambda results: b"\x89PNG")

    def __call__(
        self, runs: Mapping[str, Config], name: str, workdir: Path, only: Sequence[str]
    ) -> dict[str, RunResult]:
        results = {}
        for run in only:
            if run == self.stops_at:
                return results | {run: RunResult(1, False, 15)}
            if not (workdir / run / "finished.json").exists():
                self.began.append(run)
                arm, tried = re.findall(r"(\w+)_seed\d(?:_try(\d))?", run)[0]
                right = VALIDATION[arm][int(tried)] if tried else [1, 1]
                tiny_study.finish(workdir / run, runs[run], right)
            results[run] = RunResult(0, True)
        return results


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def results(workdir: str = "runs/study") -> Any:
    return json.loads((Path(workdir) / "study.json").read_text(encoding="utf-8"))


TUNING = ["sft_seed0", "rft_seed0_try0", "rft_seed0_try1",
          "online_rft_seed0_try0", "online_rft_seed0_try1"]  # fmt: skip


def test_what_scores_best_on_validation_is_compared(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", "study.py"]) == 0
    chosen = ["rft_seed{}_try0", "online_rft_seed{}_try1"]
    assert runs.began == [
        *TUNING,
        *(run.format(seed) for seed in (1, 2) for run in ("sft_seed{}", *chosen)),
    ]
    found = results()
    assert {arm: [one["score"] for one in tries] for arm, tries in found["tuning"].items()} == {
        "rft": [5 / 8, 4 / 8], "online_rft": [2 / 8, 3 / 8],
    }  # fmt: skip
    settings = {arm: one["settings"] for arm, one in found["arms"].items()}
    rate = "optimizer.learning_rate"
    assert settings == {"sft": {}, "rft": {rate: 1e-3}, "online_rft": {rate: 1e-2}}
    for run in TUNING:  # no test question is looked at for a choice
        assert '"test"' not in Path(f"runs/study/{run}/metrics.jsonl").read_text()
    out = capsys.readouterr().out
    assert out.startswith("arm         samples  updates  tokens at most\n")
    assert "2 seeds; 2 tries of each arm on seed 0, chosen by pass_at/1; 11 runs in all\n" in out
    table = Path("runs/study/study.md").read_text(encoding="utf-8")
    assert out.endswith(f"{table}\nresults: runs/study/study.json\n")
    assert Path("runs/study/study.png").read_bytes().startswith(b"\x89PNG")
    # Results are drawn again, and nothing is run for it.
    Path("kept.json").write_bytes(Path("runs/study/study.json").read_bytes())
    began = [*runs.began]
    assert cli.main(["study", "kept.json"]) == 0
    assert capsys.readouterr().out == table
    assert Path("kept.png").exists()
    assert runs.began == began


def test_a_stopped_study_resumes(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    for stop in ("rft_seed0_try1", "online_rft_seed2_try1"):
        runs.stops_at = stop
        assert cli.main(["study", "study.py"]) == 128 + 15
        line = f"rft-jax: run {stop} is stopped and saved; the same command resumes it.\n"
        assert capsys.readouterr().err.endswith(line)
        assert not Path("runs/study/study.json").exists()
    # The seeds that are there may be looked at; none of the runs is carried out for it.
    assert cli.main(["study", "study.py", "--report-only"]) == 0
    assert results()["seeds"] == [1]
    assert len(runs.began) == len(set(runs.began)) == 10
    runs.stops_at = ""
    assert cli.main(["study", "study.py"]) == 0
    assert results()["seeds"] == [1, 2]
    assert runs.began[10:] == ["online_rft_seed2_try1"]


def test_seeds_are_added(runs: Runs) -> None:
    assert cli.main(["study", "study.py", "--seeds", "1", "--workdir", "w"]) == 0
    before = len(runs.began)
    assert cli.main(["study", "study.py", "--seeds", "3", "--workdir", "w"]) == 0
    assert results("w")["seeds"] == [1, 2, 3]
    assert len(runs.began) == before + 6
    assert results("w")["command"] == "rft-jax study study.py --workdir w --seeds 3"


def test_fields_of_arms_and_starts(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}

    def carry_out(configs: Mapping[str, Config], *_: Any) -> dict[str, RunResult]:
        seen.update({name: config.steps for name, config in configs.items()})
        return {"none": RunResult(0, False)}

    monkeypatch.setattr(running, "carry_out", carry_out)
    args = ["--sft.steps", "5", "--all.optimizer.b2", "0.9"]
    assert cli.main(["study", "study.py", *args]) == 130
    assert seen == {"sft_seed0": 5} | dict.fromkeys(TUNING[1:], 4)


def test_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def carry_out(*args: Any) -> dict[str, RunResult]:
        asked.append(args[1:])
        return {"sft_seed1": RunResult(0, True)}

    monkeypatch.setattr(running, "carry_out", carry_out)
    assert cli.main(["study", "study.py", "--only", "sft_seed1"]) == 0
    assert asked == [("study.py", Path("runs/study"), ("sft_seed1",))]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["stud.py"], "experiment file stud.py does not exist; did you mean study.py?"),
        (["study.py", "--seeds", "0"], "seeds is 0: it must be at least 1."),
        (["study.py", "--report-only", "--at-once", "2"],
         "--report_only carries out nothing: leave --only and --at_once out."),
        (["study.py", "--report-only"],
         "runs/study/sft_seed0 is not finished, so no settings are chosen yet."),
        (["study.py", "--rtf.steps", "3"], "unknown option --rtf.steps; did you mean --rft.steps?"),
        (["study.py", "--online_rft.steps", "3"],
         "online_rft: its budget is 96 samples but 128 in arm rft: set both alike, or leave"),
        (["none.json"], "none.json"),
        (["odd.json"], "odd.json holds no results of a study (KeyError: "),
        (["odd.json", "--seeds", "2"], "odd.json holds results, which are drawn: no option acts."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("odd.json").write_text("{}", encoding="utf-8")
    assert cli.main(["study", *args]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_a_job_of_several_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    assert cli.main(["study", "study.py"]) == 2
    assert "a study is one process; carry out its runs in jobs" in capsys.readouterr().err


ONE_RUN = """
import os, pathlib, sys, time
run = pathlib.Path(sys.argv[-1])
assert sys.argv[1:-1] == ["--only"]
assert os.environ["JAX_NUM_CPU_DEVICES"] == "1"
others = len(list(pathlib.Path().glob("*.begun")))
run.with_suffix(".begun").write_text(str(others - len(list(pathlib.Path().glob("*.ended")))))
while run.name == "slow":
    time.sleep(0.01)
time.sleep(0.2)
run.with_suffix(".ended").touch()
sys.exit(run.name == "bad")
"""


def test_two_runs_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    command = [sys.executable, "-c", ONE_RUN]
    assert studies._in_processes(command, ["a", "b", "c", "d"], 2) == 0
    beside = {path.stem: int(path.read_text()) for path in Path().glob("*.begun")}
    assert beside.keys() == {"a", "b", "c", "d"}
    assert max(beside.values()) <= 1
    # One that fails begins no others: it is repeated where it can say why.
    assert studies._in_processes(command, ["bad", "e"], 1) == 0
    assert not Path("e.begun").exists()


def test_a_signal_stops_all_of_them() -> None:
    def stop() -> None:
        while not Path("slow.begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    waiting = threading.Thread(target=stop)
    waiting.start()
    command = [sys.executable, "-c", ONE_RUN]
    assert studies._in_processes(command, ["slow", "later"], 1) == signal.SIGTERM
    waiting.join()
    assert not Path("slow.ended").exists()
    assert not Path("later.begun").exists()


def lasting(found: Any) -> Any:
    """Results without what depends on the machine."""
    if isinstance(found, Mapping):
        return {
            name: lasting(value)
            for name, value in found.items()
            if name not in ("seconds", "command")
        }
    return [lasting(one) for one in found] if isinstance(found, list) else found


def dies_after(patch: pytest.MonkeyPatch, lines: int) -> None:
    """A run dies instead of writing its next line, once so many are written."""
    write, left = MetricsLog.write, lines

    def dies(self: MetricsLog, kind: Any, step: int, values: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        write(self, kind, step, values)

    patch.setattr(MetricsLog, "write", dies)


@pytest.mark.slow
def test_a_killed_study_ends_with_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in one go, and once killed in a tuning run and in one that is compared."""
    monkeypatch.setenv("PYTHONPATH", TESTS)
    assert cli.main(["study", "study.py", "--workdir", "whole"]) == 0
    for calls in (9, 25):
        with monkeypatch.context() as patch:
            dies_after(patch, calls)
            assert cli.main(["study", "study.py", "--workdir", "again"]) == 130
    assert cli.main(["study", "study.py", "--workdir", "again"]) == 0
    assert lasting(results("again")) == lasting(results("whole"))
    assert results("whole")["at_equal"]["seconds"]["arms"].keys() == {"rft", "online_rft"}
