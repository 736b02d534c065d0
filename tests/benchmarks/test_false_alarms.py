"""The count of alarms over workdirs, also of what older versions wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_workdir import STEPS, make_run, train_line, write_lines

from benchmarks.alarms import lines_of, main


def test_what_older_versions_left_out_is_computed(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", "online_rft", 0.1, 0.2)
    line = train_line(1, 0.2, "online_rft") | {"questions/pass_rate_histogram": [1, 0, 2, 0, 1]}
    rows = [{"question_id": n, "greedy_correct": n == 0} for n in range(4)]
    write_lines(folder / "evaluation/validation-000000.jsonl", rows)
    write_lines(
        folder / "evaluation/validation-000010.jsonl",
        [row | {"greedy_correct": True} for row in rows],
    )
    # Of a further set, which counts for nothing here.
    write_lines(folder / "evaluation/validation-b-000010.jsonl", rows)
    evaluated = [{"step": step, "kind": "validation"} for step in (0, 10)]
    write_lines(folder / "metrics.jsonl", [evaluated[0], line, evaluated[1]])
    before, trained, after = lines_of(folder)
    assert trained["questions/reward_deviation"] == 2 / 4 * 0.5
    assert "questions/gained" not in before
    assert (after["questions/gained"], after["questions/solved_change"]) == (1, 0.75)


def test_runs_are_counted_by_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, cut in (("well", 0), ("ill", 100)):
        folder = make_run(tmp_path, name, "online_rft", 0.1, 0.2)
        lines = [train_line(step, 0.2, "online_rft") for step in range(1, STEPS + 1)]
        for line in lines[STEPS // 2 :]:
            line["funnel/finished"] -= cut
        write_lines(folder / "metrics.jsonl", lines)
    monkeypatch.setattr("sys.argv", ["alarms", str(tmp_path)])
    main()
    shown = capsys.readouterr().out
    assert "| truncation | 1 | 0.500 | 23 |" in shown
    assert "no alarm at all: 1 of 2" in shown
    assert f"{tmp_path.name}/ill: truncation since step 23: share of outputs cut" in shown
    monkeypatch.setattr("sys.argv", ["alarms", str(tmp_path), "--set", "truncation=0.9"])
    main()
    assert "no alarm at all: 2 of 2" in capsys.readouterr().out
