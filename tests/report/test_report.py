"""The report, on synthetic workdirs."""

from __future__ import annotations

import base64
import html
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from synthetic_workdir import (
    QUESTIONS,
    STEPS,
    make_run,
    make_workdir,
    output_line,
    train_line,
    write_lines,
)

from rft_jax.errors import UserError
from rft_jax.report.figures import curves, funnel, pass_at_k_curves, pass_rates, spread
from rft_jax.report.health import alarms_table, reliability
from rft_jax.report.load import OUTPUTS_SHOWN, load_outputs, load_runs
from rft_jax.report.page import write_report
from rft_jax.report.tables import (
    compact,
    comparisons,
    differences,
    results,
    summary_table,
    time_parts,
    time_table,
    utilization_table,
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workdir(tmp_path_factory.mktemp("arithmetic"), text="</script><b>7</b> & more")


@pytest.fixture(scope="module")
def page(workdir: Path) -> str:
    return write_report(workdir).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Checks that tags are closed in order and collects what the page refers to."""

    void = frozenset({"meta", "img", "input", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in self.void:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_refers_to_nothing_outside(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(set(tags.ids)) == len(tags.ids)
    for reference in tags.references:
        assert reference.startswith("data:image/png;base64,") or reference[1:] in tags.ids
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert "url(" not in page
    assert tags.counts["img"] == 9


def test_every_figure_is_a_png_beside_the_page(workdir: Path, page: str) -> None:
    names = {path.stem for path in (workdir / "plots").glob("*.png")}
    assert names == {
        "accuracy", "pass_at_k", "entropy", "lengths", "lengths_by_verdict", "funnel",
        "pass_rates", "time", "health",
    }  # fmt: skip
    embedded = re.findall(r"data:image/png;base64,([^\"]*)", page)
    assert all(base64.b64decode(text).startswith(b"\x89PNG") for text in embedded)


def test_model_text_cannot_leave_its_place(page: str) -> None:
    assert "<b>7</b>" not in page
    data = re.search(r'<script type="application/json" id="outputs-data">(.*?)</script>', page)
    assert data is not None
    outputs = json.loads(data[1])["outputs"]
    assert outputs[0]["text"] == "</script><b>7</b> & more"
    assert {output["verdict"] for output in outputs} == {"correct", "incorrect", "undecided"}
    assert {output["run"] for output in outputs} == {"rft", "online_rft"}


@pytest.mark.slow
def test_run_names_are_escaped(tmp_path: Path) -> None:
    make_run(tmp_path, "a&<i>b", "sft", 0.1, 0.2)
    page = write_report(tmp_path).read_text()
    assert "<i>b" not in page
    assert "a&amp;&lt;i&gt;b" in page


@pytest.mark.slow
def test_half_a_surrogate_pair_does_not_stop_the_page(tmp_path: Path) -> None:
    make_run(tmp_path, "rft", "rft", 0.1, 0.2, text="\ud800")
    assert write_report(tmp_path).exists()


def test_outputs_are_capped_and_spread_over_steps_and_sample_indices(tmp_path: Path) -> None:
    for step in range(1, 101):
        write_lines(
            tmp_path / "rollouts" / f"step-{step:06d}.jsonl",
            [output_line(step, index, "x") for index in range(64)],
        )
    outputs, gaps = load_outputs(tmp_path)
    assert gaps == []
    assert len(outputs) == OUTPUTS_SHOWN
    steps = sorted({output["step"] for output in outputs})
    assert (steps[0], steps[-1], len(steps)) == (1, 100, 40)
    assert {output["sample_index"] for output in outputs} == {0, 1, 2, 3}
    assert {output["verdict"] for output in outputs} == {"correct", "incorrect", "undecided"}


def test_few_outputs_are_all_shown(tmp_path: Path) -> None:
    write_lines(tmp_path / "rollouts" / "step-000000.jsonl", [output_line(0, 1, "x")] * 3)
    assert len(load_outputs(tmp_path)[0]) == 3
    assert load_outputs(tmp_path / "nothing") == ([], [])


def test_summary_has_a_row_a_run_and_the_paired_differences(workdir: Path) -> None:
    text = summary_table(workdir)
    lines = text.splitlines()
    assert lines[0].split("  ")[0] == "run"
    for title in ("greedy accuracy %", "pass@1 %", "pass@8 %", "entropy", "distinct correct"):
        assert title in lines[0]
    assert [line.split()[0] for line in lines[2:5]] == ["sft", "rft", "online_rft"]
    assert "480.0 k" in lines[4]
    final = json.loads((workdir / "sft" / "metrics.jsonl").read_text().splitlines()[-1])
    accuracy, error = final["greedy/accuracy"], final["greedy/standard_error"]
    assert f"{100 * accuracy:.1f} ± {100 * error:.1f}" in lines[2]
    assert re.search(r"^rft - sft +[+-]\d", text, re.MULTILINE)
    assert re.search(r"^online_rft - sft .*\] \* ", text, re.MULTILINE)
    assert re.search(r"^online_rft - rft ", text, re.MULTILINE)
    assert max(map(len, lines)) < 140


def test_differences_are_those_of_the_question_lines(workdir: Path) -> None:
    runs = {run.name: run for run in load_runs(workdir)}
    greedy = [
        np.mean([line["greedy_correct"] for line in runs[name].questions.values()])
        for name in ("sft", "online_rft")
    ]
    row = next(row for row in differences(list(runs.values())).rows if "online_rft - sft" in row)
    assert row[1].startswith(f"{100 * (greedy[1] - greedy[0]):+.1f} [")
    assert row[3] == str(QUESTIONS)


def test_undecided_questions_are_left_out_of_the_differences(tmp_path: Path) -> None:
    for name, correct in (("a", [True, None, False, False]), ("b", [True, True, True, None])):
        make_run(tmp_path, name, "sft", 0.1, 0.2)
        lines = [
            {"question_id": i, "greedy_correct": one, "num_samples": 0, "num_correct": 0}
            for i, one in enumerate(correct)
        ]
        write_lines(tmp_path / name / "evaluation" / "test.jsonl", lines)
    (row,) = differences(load_runs(tmp_path)).rows
    assert row[1].startswith("+50.0 [")
    assert row[2] == "-"


def test_several_runs_of_a_method_are_compared_by_their_means(tmp_path: Path) -> None:
    make_run(tmp_path, "a", "sft", 0.1, 0.3)
    for seed in (1, 2):
        make_run(tmp_path, f"o{seed}", "online_rft", 0.3, 0.7, seed=seed)
        make_run(tmp_path, f"m{seed}", "rft", 0.3, 0.5, seed=seed)
    labels = [comparison.label for comparison in comparisons(load_runs(tmp_path))]
    assert labels == [
        "m1 - a", "m2 - a", "o1 - a", "o2 - a", "mean of 2 online_rft - mean of 2 rft"
    ]  # fmt: skip


@pytest.mark.slow
def test_no_method_is_known_by_its_name(tmp_path: Path) -> None:
    make_run(tmp_path, "a", "sft", 0.1, 0.3)
    make_run(tmp_path, "b", "x_module:x", 0.3, 0.5)
    folder = make_run(tmp_path, "c", "y", 0.3, 0.7)
    info = json.loads((folder / "config.json").read_text())
    info["config"]["method"] = {"name": "y_module:y", "source": "policy"}
    (folder / "config.json").write_text(json.dumps(info))
    runs = load_runs(tmp_path)
    assert [run.method for run in runs] == ["sft", "x_module:x", "y_module:y"]
    assert [one.label for one in comparisons(runs)] == ["b - a", "c - a", "c - b"]
    assert "<span>y_module:y</span>" in write_report(tmp_path).read_text()


def test_columns_that_no_run_has_a_figure_for_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", "sft", 0.1, 0.3)
    line = {"step": 1, "kind": "validation", "greedy/accuracy": 0.5, "cost/updates": 1}
    write_lines(folder / "metrics.jsonl", [line])
    table = results(load_runs(tmp_path))
    assert table.header == ("run", "evaluated on", "greedy accuracy %", "updates")
    assert table.rows == (("a", "validation, step 1", "50.0", "1"),)


def test_questions_left_out_are_counted(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", "sft", 0.1, 0.3)
    lines = [
        {"step": 1, "kind": "train", "data/too_long": 12},
        {"step": 1, "kind": "validation", "greedy/accuracy": 0.5, "data/too_long": 0},
    ]
    write_lines(folder / "metrics.jsonl", lines)
    notes = results(load_runs(tmp_path)).notes
    assert "a: questions left out as too long: train 12, validation 0." in notes


def test_an_rft_run_that_stands_first_is_compared_once(tmp_path: Path) -> None:
    make_run(tmp_path, "a", "rft", 0.1, 0.3)
    make_run(tmp_path, "b", "online_rft", 0.1, 0.3)
    assert [one.label for one in comparisons(load_runs(tmp_path))] == ["b - a"]


def test_without_a_test_set_the_last_validation_counts(tmp_path: Path) -> None:
    make_run(tmp_path, "a", "sft", 0.1, 0.3, test=False)
    make_run(tmp_path, "b", "sft", 0.1, 0.3)
    runs = load_runs(tmp_path)
    table = results(runs)
    assert table.rows[0][1] == f"validation, step {STEPS}"
    assert "Runs evaluated on different questions cannot be compared." in table.notes
    assert differences(runs).rows == ()
    assert "one is on test, one on validation: not compared" in differences(runs).notes[0]
    assert "one is on test" in summary_table(tmp_path)


def test_runs_without_common_or_decided_questions_are_not_compared(tmp_path: Path) -> None:
    for name, start in (("a", 0), ("b", 100), ("c", 0)):
        make_run(tmp_path, name, "sft", 0.1, 0.3)
        lines = [
            {
                "question_id": start + i, "num_samples": 0, "num_correct": 0,
                "greedy_correct": None if name == "c" else True,
            }
            for i in range(3)
        ]  # fmt: skip
        write_lines(tmp_path / name / "evaluation" / "test.jsonl", lines)
    notes = differences(load_runs(tmp_path)).notes
    assert notes == (
        "b - a: no question in common: not compared.",
        "c - a: no question decided in both: not compared.",
    )


def test_time_parts_sum_up_to_the_elapsed_time(workdir: Path) -> None:
    run = load_runs(workdir)[2]
    parts = time_parts(run)
    assert parts["sampling"] == pytest.approx(1.4 * STEPS)
    assert parts["evaluating"] == pytest.approx(2.5 * 6)
    assert sum(parts.values()) == pytest.approx(3.0 * STEPS)
    assert "compiling" not in parts


def test_compilation_is_counted_over_resumes(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", "sft", 0.1, 0.2)
    lines = [
        train_line(step, 0.2, "sft") | {"seconds/compiling": seconds}
        for step, seconds in enumerate([3.0, 3.0, 5.0, 2.0, 2.5])
    ]
    write_lines(folder / "metrics.jsonl", lines)
    (run,) = load_runs(tmp_path)
    assert run.counted("seconds/compiling") == 7.5
    assert time_table([run]).rows[0][-1] == "7.5"


@pytest.mark.slow
def test_use_of_the_machine_is_that_of_the_middle_step(tmp_path: Path) -> None:
    share = "utilization/update_mfu"
    lines = [
        train_line(step, 0.2, "online_rft") | {"utilization/update_flops": flops, share: used}
        | {"utilization/decode_bytes": 2.5e10, "utilization/decode_bandwidth": None}
        for step, flops, used in [(1, 1e12, 0.01), (2, 3e12, 0.5), (3, 4e12, 0.4)]
    ]  # fmt: skip
    make_run(tmp_path, "rft", "rft", 0.1, 0.2)
    write_lines(make_run(tmp_path, "online_rft", "online_rft", 0.1, 0.2) / "metrics.jsonl", lines)
    table = utilization_table(load_runs(tmp_path))
    # A run whose lines say nothing of it has no row, and a share that is not known no number.
    assert table.rows == (("online_rft", "3.0 T", "40.0", "-", "-", "25.0 G", "-"),)
    assert utilization_table(load_runs(tmp_path)[1:]) == (table.header, (), ())
    assert "Use of the machine" in write_report(tmp_path).read_text(encoding="utf-8")


def test_runs_come_in_the_order_of_the_experiment_and_then_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", "z"):
        make_run(tmp_path, name, "sft", 0.1, 0.2)
    assert [run.name for run in load_runs(tmp_path)] == ["a", "b", "z"]
    (tmp_path / "experiment.json").write_text('{"runs": ["z", "later"]}')
    runs = load_runs(tmp_path)
    assert [run.name for run in runs] == ["z", "later", "a", "b"]
    assert runs[1].gaps == ("later: not started.",)
    assert "later: not started." in summary_table(tmp_path)
    assert "later: not started." in write_report(tmp_path).read_text()


def test_a_workdir_without_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run .* run the experiment first"):
        summary_table(tmp_path)
    with pytest.raises(UserError, match="missing is not a folder: give the workdir"):
        write_report(tmp_path / "missing")


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": "a"}', '{"runs": [1]}', "{}"])
def test_a_damaged_experiment_file(tmp_path: Path, text: str) -> None:
    make_run(tmp_path, "a", "sft", 0.1, 0.2)
    (tmp_path / "experiment.json").write_text(text)
    with pytest.raises(UserError, match=r"experiment\.json does not read .* remove it"):
        load_runs(tmp_path)


def replace_line(path: Path, number: int, text: str) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = text
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_damage_is_stated_and_the_rest_is_shown(tmp_path: Path) -> None:
    make_workdir(tmp_path)
    replace_line(tmp_path / "rft" / "metrics.jsonl", 3, '{"step": 2, "ki')
    replace_line(tmp_path / "online_rft" / "evaluation" / "test.jsonl", 2, "[1]")
    (tmp_path / "online_rft" / "rollouts" / "step-000001.jsonl").write_text("{}\n")
    (tmp_path / "sft" / "config.json").write_text("{")
    page = write_report(tmp_path).read_text()
    for text in (html.unescape(page), summary_table(tmp_path)):
        assert "rft: no metrics shown." in text
        assert 'metrics.jsonl:3: {"step": 2, "ki is not JSON' in text
        assert "test.jsonl:2: [1] is not a JSON object: remove the line." in text
        assert "sft: " in text
        assert "config.json is not a JSON object: no settings shown." in text
        assert "Traceback" not in text
    assert "some sampled outputs are not shown" in page
    assert "data:image/png" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lose", "gap"),
    [
        ("metrics.jsonl", "a: no metrics.jsonl: no curves shown."),
        ("evaluation/test.jsonl", "test.jsonl is missing: no paired differences shown."),
    ],
)
def test_missing_files_are_stated(tmp_path: Path, lose: str, gap: str) -> None:
    (make_run(tmp_path, "a", "rft", 0.1, 0.2) / lose).unlink()
    assert gap in summary_table(tmp_path)
    assert gap in write_report(tmp_path).read_text()


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda content: None,
    "empty": lambda content: b"",
    "half a line": lambda content: content[:10],
    "half": lambda content: content[: len(content) // 2].rstrip(b"}\n"),
    "a list": lambda content: b"[]\n",
    "no text": lambda content: b"\xff\xfe\x00\n",
    "brackets": lambda content: b"[" * 100_000 + b"\n",
    "evaluations only": lambda content: _lines(content, lambda line: line["kind"] != "train"),
    "the start only": lambda content: _lines(content, lambda line: line["step"] == 0),
    "numbers lost": lambda content: _lines(content, lambda line: True, keep=("step", "kind")),
}


def _lines(
    content: bytes, wanted: Callable[[dict[str, Any]], bool], keep: tuple[str, ...] = ()
) -> bytes | None:
    """The lines of a metrics log that are wanted; of another file all."""
    if not content.startswith(b'{"step"'):
        return content
    lines = [line for line in map(json.loads, content.splitlines()) if wanted(line)]
    kept = [{k: v if not keep or k in keep else None for k, v in line.items()} for line in lines]
    return b"".join(json.dumps(line).encode() + b"\n" for line in kept)


FILES = ("config.json", "metrics.jsonl", "evaluation/test.jsonl", "rollouts/step-000001.jsonl")
NOT_NAMED = {
    ("metrics.jsonl", "half"), ("metrics.jsonl", "numbers lost"),
    ("rollouts/step-000001.jsonl", "gone"), ("rollouts/step-000001.jsonl", "half"),
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    make_run(folder, "a", "sft", 0.1, 0.2)
    make_run(folder, "b", "online_rft", 0.1, 0.2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_run_says_what_is_missing_and_blocks_no_other(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, png, **_: save(self, png, dpi=20))
    for name, damage in DAMAGE.items():
        workdir = tmp_path / name
        shutil.copytree(finished, workdir)
        path = workdir / "b" / file
        if (content := damage(path.read_bytes())) is None:
            path.unlink()
        elif content != path.read_bytes():
            path.write_bytes(content)
        else:
            continue
        page = html.unescape(write_report(workdir).read_text(encoding="utf-8"))
        text = summary_table(workdir)
        assert re.search(r"^a +test +\d", text, re.MULTILINE), (name, text)
        assert '<div class="big">' in page
        if (file, name) not in NOT_NAMED:
            assert "<p>b: " in page, (file, name)


def test_a_run_without_evaluation(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", "online_rft", 0.1, 0.2)
    write_lines(folder / "metrics.jsonl", [train_line(i, 0.2, "online_rft") for i in range(1, 4)])
    assert "a: no evaluation: no accuracy shown." in summary_table(tmp_path)
    write_report(tmp_path)
    names = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert names == {"health", "lengths_by_verdict", "funnel", "pass_rates", "time"}


def test_the_page_says_whether_runs_are_healthy(tmp_path: Path) -> None:
    """Every alarm with what helps, by the thresholds of its run."""
    for name, cut in (("well", 0), ("ill", 100), ("own", 100), ("ended", 100)):
        folder = make_run(tmp_path, name, "online_rft", 0.1, 0.2)
        lines = [train_line(step, 0.2, "online_rft") for step in range(1, STEPS + 1)]
        for line in lines[STEPS // 2 :]:
            line["funnel/finished"] -= cut
        write_lines(folder / "metrics.jsonl", lines)
        path = folder / "evaluation" / "validation-000040.jsonl"
        write_lines(path, [{"question_id": 0, "greedy_correct": True, "greedy_text": "1"}])
        if name in ("own", "ended"):
            info = json.loads((folder / "config.json").read_text())
            own = {"truncation": 0.9} if name == "own" else {"action": "stop"}
            info["config"]["alarms"] = own
            (folder / "config.json").write_text(json.dumps(info))
    table = alarms_table(load_runs(tmp_path))
    ended, row = table.rows
    assert (ended[0], row[0], row[1]) == ("ended", "ill", "truncation")
    assert int(row[2]) > STEPS // 2
    assert "share of outputs cut at the limit is" in row[3]
    assert "data.max_completion_tokens higher" in row[4]
    assert table.notes == ("ended was ended at step 40 (alarms.action=stop).",)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert '<section id="is-it-healthy"><h2>Is it healthy?</h2>' in page
    assert "data.max_completion_tokens higher" in page
    assert "No alarm was raised." not in page


def test_a_healthy_run_is_said_to_be(workdir: Path, page: str) -> None:
    assert alarms_table(load_runs(workdir)).rows == ()
    assert "No alarm was raised." in page


def test_reliability_is_of_the_votes(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", "online_rft", 0.1, 0.2)
    path = folder / "evaluation" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert reliability(load_runs(tmp_path)) is None  # as an older version left them
    shares = [0.25 if i % 2 else 1.0 for i in range(len(rows))]
    voted = [
        row | {"majority_share": share, "majority_correct": float(share == 1)}
        for row, share in zip(rows, shares, strict=True)
    ]
    write_lines(path, voted)
    figure = reliability(load_runs(tmp_path))
    assert figure is not None
    _, curve = figure.axes[0].lines
    np.testing.assert_allclose(np.asarray(curve.get_xydata()), [[0.25, 0], [1, 1]])


def test_evaluations_of_greedy_outputs_are_compared(tmp_path: Path) -> None:
    for name, correct in (("a", [False, False, True]), ("b", [True, None, True])):
        folder = make_run(tmp_path, name, "sft", 0.1, 0.2)
        rows = [
            {"question_id": i, "greedy_correct": one, "greedy_text": "1"}
            for i, one in enumerate(correct)
        ]
        write_lines(folder / "evaluation" / "test.jsonl", rows)
    runs = load_runs(tmp_path)
    assert [run.gaps for run in runs] == [(), ()]
    ((_, greedy, sampled, questions),) = differences(runs).rows
    assert greedy.startswith("+50.0 [")
    assert (sampled, questions) == ("-", "3")
    assert "b - a" in summary_table(tmp_path)


def test_more_correct_than_sampled_is_stated(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", "sft", 0.1, 0.2)
    line = {"question_id": 4, "greedy_correct": True, "num_samples": 2, "num_correct": 3}
    write_lines(folder / "evaluation" / "test.jsonl", [line])
    assert "question 4 has 3 correct of 2 samples" in summary_table(tmp_path)


def test_a_run_that_was_just_started(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    assert "a: no metrics.jsonl" not in summary_table(tmp_path)
    assert write_report(tmp_path).exists()


@pytest.mark.slow
def test_a_run_that_ended_before_its_first_step(tmp_path: Path) -> None:
    """Its first evaluation is there, and no line of a step."""
    make_workdir(tmp_path)
    path = tmp_path / "online_rft" / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["kind"] != "train"]
    path.write_text("".join(kept), encoding="utf-8")
    assert write_report(tmp_path).is_file()


@pytest.mark.slow
def test_many_runs_have_a_style_each(tmp_path: Path) -> None:
    for place in range(9):
        make_run(tmp_path, f"online_seed_{place}", "online_rft", 0.3, 0.6, seed=place)
    assert write_report(tmp_path).exists()
    run = load_runs(tmp_path)[0]
    styles = [replace(run, place=place) for place in range(28)]
    assert len({(run.colour, run.dash) for run in styles}) == 28


def test_runs_that_sample_nothing_have_no_axis_of_sampled_tokens(tmp_path: Path) -> None:
    make_run(tmp_path, "a", "sft", 0.1, 0.2)
    (figure,) = [curves(load_runs(tmp_path), "greedy/accuracy", "accuracy", percent=True)]
    assert figure is not None
    assert [axes.get_xlabel() for axes in figure.axes] == ["updates"]
    make_run(tmp_path, "b", "online_rft", 0.1, 0.2)
    figure = curves(load_runs(tmp_path), "greedy/accuracy", "accuracy", percent=True)
    assert figure is not None
    assert [axes.get_xlabel() for axes in figure.axes] == ["updates", "sampled tokens"]


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 1.0])
def test_axes_of_one_point_are_not_below_zero(tmp_path: Path, accuracy: float) -> None:
    folder = make_run(tmp_path, "b", "online_rft", 0.1, 0.2)
    line = {
        "step": 0, "kind": "validation", "greedy/accuracy": accuracy, "pass_at/1": accuracy,
        "cost/sampled_tokens": 0,
    }  # fmt: skip
    write_lines(folder / "metrics.jsonl", [line])
    runs = load_runs(tmp_path)
    for figure in (curves(runs, "greedy/accuracy", "", percent=True), pass_at_k_curves(runs)):
        assert figure is not None
        figure.draw_without_rendering()
        for axes in figure.axes:
            for ticks, (low, high) in (
                (axes.get_xticks(), axes.get_xlim()), (axes.get_yticks(), axes.get_ylim()),
            ):  # fmt: skip
                assert low < high
                assert [tick for tick in ticks if low <= tick < 0] == []


def test_the_stages_of_the_funnel_are_the_methods(tmp_path: Path) -> None:
    make_run(tmp_path, "a", "online_rft", 0.1, 0.2)
    folder = make_run(tmp_path, "b", "x", 0.1, 0.2)
    info = json.loads((folder / "config.json").read_text())
    info["config"]["method"] = {"name": "m:x", "source": "policy", "trains_on": "decided"}
    (folder / "config.json").write_text(json.dumps(info))
    figure = funnel(load_runs(tmp_path))
    assert figure is not None
    assert [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes] == [
        ["sampled", "finished", "parsed", "correct", "distinct", "kept"],
        ["sampled", "decided", "distinct", "kept"],
    ]
    shown = [text.get_text() for text in figure.axes[1].texts]
    assert shown[:2] == [f"100.0%  {256 * STEPS:,}", f"99.6%  {255 * STEPS:,}"]


def test_pass_rates_of_an_earlier_version_have_other_bins(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", "online_rft", 0.1, 0.2)
    name = "questions/pass_rate_histogram"
    lines = [train_line(step, 0.2, "online_rft") for step in range(1, 5)]
    lines[0][name] = [1] * 10
    write_lines(folder / "metrics.jsonl", lines)
    assert pass_rates(load_runs(tmp_path)) is not None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.2, allow_nan=False))
def test_spread_keeps_order_and_distance(positions: list[float], gap: float) -> None:
    moved = spread(positions, gap)
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    places = [moved[i] for i in order]
    assert all(b - a >= gap * (1 - 1e-6) for a, b in itertools.pairwise(places))
    assert np.mean(moved) == pytest.approx(np.mean(positions))
    if len(positions) == 1:
        assert moved == positions


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (950, "950"), (1500.0, "1,500"), (12_345, "12.3 k"), (4_560_000, "4.6 M"),
     (2e9, "2.0 G"), (3.2e12, "3.2 T"), (1.5e15, "1.5 P")],
)  # fmt: skip
def test_compact_counts(count: float | None, text: str) -> None:
    assert compact(count) == text


def test_importing_the_report_needs_neither_jax_nor_matplotlib() -> None:
    code = (
        "import sys, rft_jax.report.page, rft_jax.report.tables\n"
        "assert not {'jax', 'matplotlib'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_metric_is_documented() -> None:
    """docs/report.md names each metric that stands in the source of what writes metrics.jsonl."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / "report.md").read_text()
    groups = set(re.findall(r"`(\w+)/\w+`", text))
    written = {
        name
        for room in ("runs", "training", "rollout", "evaluation")
        for path in (root / "rft_jax" / room).glob("*.py")
        for name in re.findall(r'"(\w+/\w+)"', path.read_text())
        if name.partition("/")[0] in groups
    }
    assert len(written) > 40
    # One literal is the start of two names.
    assert sorted(name for name in written if f"`{name}" not in text) == []
