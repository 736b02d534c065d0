"""Every row of the table of methods from one SFT start, at equal samples and updates.

The rows are those of `rft-jax methods`; one that is added there joins by itself. Each samples as
many outputs and makes as many updates as the others, one a rollout, so that importance ratios act
on a pool only. Its learning rate is chosen on the validation questions, with one seed and the same
rates for all rows; other seeds, at the chosen rate, are evaluated once, on the test questions.

Reproduces: the comparison of DeepSeekMath (arXiv 2402.03300), section 5.2 and figure 5, in small
    and with the rows that came after; no published figure.
Expect: the tables and the figure of docs/findings.md; the numbers behind them, with intervals, are
    in experiments/paradigm.json.
Time: about 50 minutes on one CPU core (AMD EPYC) when nothing else runs, a seed 10 of them,
    reckoned from 24 to 30 seconds a run.
Command: python experiments/paradigm.py --workdir runs/paradigm
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from arithmetic import ONLINE_RFT, RFT
from small_start import START

from rft_jax.checkpoint.provenance import git_commit, versions
from rft_jax.config import (
    CheckpointConfig,
    Config,
    CriticConfig,
    Method,
    PoolConfig,
    RolloutConfig,
    SelectionConfig,
)
from rft_jax.distributed.process import keep_programs
from rft_jax.io.lock import held
from rft_jax.observe.statistics import crossed_interval
from rft_jax.report.study import accepted, curve, per_question, test_line, validation_score
from rft_jax.training.methods import METHODS

BASELINE = "online_rft"
LAST = 3
"""Evaluations at the end of a run whose mean validation pass@1 chooses the learning rate."""
CURVES = ("greedy/accuracy", "pass_at/1", "pass_at/4", "policy/entropy",
          "questions/distinct_correct", "cost/sampled_tokens", "cost/updates")  # fmt: skip
COMPARED = ("greedy/accuracy", "pass_at/1")
"""Measures of which differences question by question are shown."""

ONE_CORE = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
"""For XLA_FLAGS: computes on one thread, whatever the machine has."""


class Plan(NamedTuple):
    """The size of the study. train: questions of the rows that sample; critic_rate: the learning
    rate of a value function; every: updates between evaluations; questions: of a rollout; group:
    outputs of each."""

    rows: Sequence[str] = tuple(METHODS)
    rates: Mapping[str, float] = {"1e-4": 1e-4, "3e-4": 3e-4}
    tuned_on: int = 0
    seeds: Sequence[int] = (1, 2, 3)
    start: Config = START
    train: str = ONLINE_RFT.data.train
    steps: int = 48
    warmup: int = 5
    critic_rate: float = 1e-3
    every: int = 24
    questions: int = 32
    group: int = 8


def arm(plan: Plan, name: str, rate: float, seed: int, *, test: bool) -> Config:
    """A run of a row; the sections that it needs follow from the row. No row has a KL."""
    row, sampled = METHODS[name], plan.questions * plan.group
    samples, online = row.source != "demonstrations", row.source == "policy"
    # Of a fixed set as many outputs an update as rows of the policy train on: half are correct.
    trained = sampled if row.trains_on == "decided" else sampled // 2
    data = replace(plan.start.data, train=plan.train) if samples else plan.start.data
    dedupe = RFT.selection if row.source == "pool" else SelectionConfig()
    verification = plan.start.verification
    if row.steps:
        verification = replace(verification, verifier="arithmetic_steps:by_line")
    return replace(
        plan.start,
        method=name,
        seed=seed,
        init_from="run:start",
        steps=plan.steps,
        data=data if test else replace(data, test=""),
        rollout=RolloutConfig(plan.questions, plan.group) if samples else None,
        pool=PoolConfig(rollout_steps=plan.steps) if row.source == "pool" else None,
        selection=dedupe if samples else None,
        update=replace(plan.start.update, sequences_per_step=0 if online else trained),
        optimizer=replace(ONLINE_RFT.optimizer, learning_rate=rate, warmup_steps=plan.warmup),
        critic=CriticConfig(learning_rate=plan.critic_rate) if row.values else None,
        verification=verification,
        evaluation=replace(
            plan.start.evaluation,
            every_steps=plan.every,
            samples_per_question=4,
            verifier=plan.start.verification.verifier if row.steps else "",
        ),
        checkpoint=CheckpointConfig(every_steps=plan.steps),
    )


def twin(name: str) -> str:
    """The first row whose runs are bit for bit those of `name`: the ratio is all that tells rows
    of one coefficient and denominator apart, and at one update a rollout it is 1."""
    row = METHODS[name]
    if row.source != "policy":
        return name

    def key(row: Method) -> tuple[str, ...]:
        return (row.source, row.trains_on, row.formula, row.denominator)

    return next(other for other, found in METHODS.items() if key(found) == key(row))


def study(workdir: Path, plan: Plan) -> dict[str, Any]:
    """The protocol; a run that is finished is not repeated."""
    from rft_jax.runs.run import run

    def carry_out(name: str, config: Config) -> str:
        began = time.perf_counter()
        with held([workdir / f"{name}.lock"]):
            finished = run(name, {name: config}, workdir).finished
        if not finished:
            raise SystemExit(f"{name}: stopped; the same command resumes it.")
        logging.info("%s: %.0f s", name, time.perf_counter() - began)
        return name

    def of(row: str, rate: str, seed: int, *, test: bool) -> str:
        config = arm(plan, twin(row), plan.rates[rate], seed, test=test)
        return carry_out(f"{twin(row)}_{rate}_{seed}", config)

    workdir.mkdir(parents=True, exist_ok=True)
    carry_out("start", plan.start)
    scores: dict[str, dict[str, float]] = {}
    for row in plan.rows:
        tried = {rate: of(row, rate, plan.tuned_on, test=False) for rate in plan.rates}
        scores[row] = {
            rate: validation_score(workdir, name, "pass_at/1", LAST) for rate, name in tried.items()
        }
    chosen = {row: max(found, key=found.__getitem__) for row, found in scores.items()}
    # Seed by seed: whatever is there when it is stopped compares all rows.
    names = {row: dict[str, str]() for row in plan.rows}
    for seed in plan.seeds:
        for row in plan.rows:
            names[row][str(seed)] = of(row, chosen[row], seed, test=True)
    return collect(workdir, plan, scores, chosen, names)


def collect(
    workdir: Path,
    plan: Plan,
    scores: Mapping[str, Mapping[str, float]],
    chosen: Mapping[str, str],
    names: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """The results of finished runs. names: of each row by seed."""
    results: dict[str, Any] = {
        "command": "python experiments/paradigm.py",
        "plan": {k: v for k, v in plan._asdict().items() if k != "start"},
        "validation_pass_at_1": scores,
        "chosen": chosen,
        "versions": versions(),
        "git_commit": git_commit(),
        "start": test_line(workdir, "start"),
        "rows": {},
    }
    for row, runs in names.items():
        results["rows"][row] = {
            "test": {seed: test_line(workdir, name) for seed, name in runs.items()},
            "validation": {seed: curve(workdir, name, CURVES) for seed, name in runs.items()},
            "accepted": {seed: accepted(workdir, name) for seed, name in runs.items()},
            "seconds": {seed: test_line(workdir, name)["seconds"] for seed, name in runs.items()},
            **{
                f"minus {other}": {
                    measure: interval(
                        [
                            per_question(workdir, name, measure)
                            - per_question(workdir, others.get(seed, other), measure)
                            for seed, name in runs.items()
                        ]
                    )
                    for measure in COMPARED
                }
                for other, others in ((BASELINE, names[BASELINE]), ("start", {}))
            },
        }
    return results


def interval(differences: Sequence[np.ndarray]) -> dict[str, Any]:
    """The mean of differences [seed][question] and its interval over both, by name."""
    found = crossed_interval(differences, seed=0)
    assert found is not None, "a question of the test is decided"
    return found._asdict()


MEASURES = {
    "greedy/accuracy": "greedy %",
    "pass_at/1": "pass@1 %",
    "pass_at/16": "pass@16 %",
    "policy/entropy": "entropy",
    "questions/distinct_correct": "distinct correct of 16",
}


def by_seed(results: Mapping[str, Any], row: str, measure: str) -> list[float]:
    """A measure on the test questions, of each seed."""
    return [line[measure] for line in results["rows"][row]["test"].values()]


def in_order(results: Mapping[str, Any]) -> list[str]:
    """The rows, best pass@1 first."""
    return sorted(results["rows"], key=lambda row: -np.mean(by_seed(results, row, "pass_at/1")))


def _shown(measure: str, value: float) -> str:
    return f"{value:.3f}" if measure.startswith(("policy", "questions")) else f"{100 * value:.1f}"


def table(results: Mapping[str, Any]) -> str:
    """Means over seeds as a Markdown table, with the differences to Online RFT in points."""
    head = ["row", "rate", *MEASURES.values(), "accepted at the end %"]
    head += [f"{m} minus {BASELINE} [95 %]" for m in ("greedy", "pass@1")]
    rows = [head, ["---"] * len(head)]
    start = [_shown(m, results["start"][m]) for m in MEASURES]
    rows.append(["the start", "", *start, "", "", ""])
    for row in in_order(results):
        found = results["rows"][row]
        cells = [_shown(m, float(np.mean(by_seed(results, row, m)))) for m in MEASURES]
        shares = [share for share in found["accepted"].values() if share is not None]
        cells.append(f"{100 * np.mean(shares):.0f}" if shares else "")
        for measure in COMPARED:
            one = found[f"minus {BASELINE}"][measure]
            difference, low, high = (100 * one[name] for name in ("mean", "low", "high"))
            cells.append("" if row == BASELINE else f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]")
        rows.append([row, results["chosen"][row], *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """The figure: what each row ends with, by seed and on average, beside the start."""
    from matplotlib.figure import Figure

    rows = in_order(results)[::-1]
    figure = Figure(figsize=(15, 0.9 + 0.27 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        scale = 100 if title.endswith("%") else 1
        axes.axvline(scale * results["start"][measure], color="#667085", linestyle=":")
        for place, row in enumerate(rows):
            values = scale * np.array(by_seed(results, row, measure))
            colour = "#d55e00" if row == BASELINE else "#0072b2"
            axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.35, markersize=4)
            axes.plot(values.mean(), place, "o", color=colour, markersize=7)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), rows)
    figure.suptitle(
        "Test questions after equal samples and updates: seeds (small), their mean (large), the "
        "start (dotted)",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def main() -> None:
    """The command line of the study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/paradigm"))
    parser.add_argument("--rows", nargs="+", default=list(METHODS), help="leave out the others")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(Plan().seeds))
    parser.add_argument("--results", type=Path, default=Path("runs/paradigm/results.json"))
    parser.add_argument("--draw", type=Path, help="only draw the figure of this results file")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.draw:
        path, results = arguments.draw, json.loads(arguments.draw.read_text(encoding="utf-8"))
    else:
        os.environ.setdefault("XLA_FLAGS", ONE_CORE)
        rows = list(dict.fromkeys([BASELINE, *arguments.rows]))
        keep_programs()
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        results = study(arguments.workdir, Plan(rows=rows, seeds=arguments.seeds))
        path = arguments.results
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results, path.with_suffix(".png"))
    print(table(results))


if __name__ == "__main__":
    main()
