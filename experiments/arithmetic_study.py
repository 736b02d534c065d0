"""RFT against Online RFT on equal terms: seeds, a learning-rate grid, paired tests.

Each seed has its own SFT start. From it both arms sample the same number of outputs (RFT all of
them from the frozen start, Online RFT at each step) and make the same number of updates. The
learning rate of each arm is chosen on the validation questions, on the first seed; the test
questions are evaluated once, when a run ends.

Reproduces: DeepSeekMath (arXiv 2402.03300), section 5.2.1 and figure 5, in small: whether Online
    RFT pulls away from RFT late, and what it costs in diversity.
Expect: see the figure in README.md and the tables in docs/results.md; the numbers behind them are
    in experiments/arithmetic_study.json.
Time: about an hour on 2 CPU cores.
Command: python experiments/arithmetic_study.py --workdir runs/arithmetic_study
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from arithmetic import ONLINE_RFT, RFT, SFT

from rft_jax.checkpoint.provenance import git_commit, versions
from rft_jax.config import CheckpointConfig, Config, EvaluationConfig, PoolConfig
from rft_jax.io.jsonl import read_jsonl
from rft_jax.observe import log as metrics
from rft_jax.observe.statistics import paired_interval

SEEDS = (0, 1, 2)
RATES = {"low": 1e-4, "high": 2e-4}
STEPS = 320
EVALUATE_EVERY = 40


def _tested(base: Config) -> EvaluationConfig:
    return replace(base.evaluation, test_samples_per_question=16)


def _arm(base: Config, seed: int, rate: float) -> Config:
    return replace(
        base,
        seed=seed,
        init_from=f"run:sft_{seed}",
        steps=STEPS,
        optimizer=replace(base.optimizer, learning_rate=rate),
        evaluation=replace(
            _tested(base), every_steps=EVALUATE_EVERY, num_questions=512, samples_per_question=4
        ),
        checkpoint=CheckpointConfig(every_steps=EVALUATE_EVERY),
    )


def experiment() -> dict[str, Config]:
    """The whole grid; the study runs those that its protocol needs."""
    runs = {}
    pool = PoolConfig(rollout_steps=STEPS)
    for seed in SEEDS:
        runs[f"sft_{seed}"] = replace(SFT, seed=seed, evaluation=_tested(SFT))
        for name, rate in RATES.items():
            runs[f"rft_{seed}_{name}"] = replace(_arm(RFT, seed, rate), pool=pool)
            runs[f"online_rft_{seed}_{name}"] = _arm(ONLINE_RFT, seed, rate)
    return runs


ARMS = ("rft", "online_rft")
LAST = 3
"""Evaluations at the end of a run whose mean validation pass@1 chooses the learning rate."""


def run_all(workdir: Path, names: list[str], processes: int) -> None:
    """Do each run in a process with one compute thread, `processes` at a time."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    }

    def one(name: str) -> None:
        command = [sys.executable, __file__, "--workdir", str(workdir), "--run", name]
        subprocess.run(command, check=True, env=environment)

    with ThreadPoolExecutor(processes) as executor:
        list(executor.map(one, names))


def validation_score(workdir: Path, name: str) -> float:
    """Mean pass@1 on validation over the last evaluations of a run."""
    lines = metrics.read(workdir / name / "metrics.jsonl")
    values = [line["pass_at/1"] for line in lines if line["kind"] == "validation"]
    return float(np.mean(values[-LAST:]))


def study(workdir: Path, processes: int) -> dict[str, Any]:
    """The protocol: starts, the grid on the first seed, the chosen rates on the others."""
    first, others = SEEDS[0], SEEDS[1:]
    low, *rest = RATES
    run_all(workdir, [f"sft_{seed}" for seed in SEEDS[:processes]], processes)
    more = [f"sft_{seed}" for seed in SEEDS[processes:]]
    run_all(workdir, [*(f"{arm}_{first}_{low}" for arm in ARMS), *more], processes)
    run_all(workdir, [f"{arm}_{first}_{rate}" for rate in rest for arm in ARMS], processes)
    scores = {
        arm: {rate: validation_score(workdir, f"{arm}_{first}_{rate}") for rate in RATES}
        for arm in ARMS
    }
    chosen = {arm: max(scores[arm], key=scores[arm].__getitem__) for arm in ARMS}
    run_all(workdir, [f"{arm}_{seed}_{chosen[arm]}" for seed in others for arm in ARMS], processes)
    runs = {
        str(seed): {"sft": f"sft_{seed}"} | {arm: f"{arm}_{seed}_{chosen[arm]}" for arm in ARMS}
        for seed in SEEDS
    }
    return {
        "command": "python experiments/arithmetic_study.py",
        "seeds": SEEDS,
        "learning_rates": RATES,
        "validation_pass_at_1": scores,
        "chosen": chosen,
        "versions": versions(),
        "git_commit": git_commit(),
        "curves": {
            seed: {arm: curve(workdir, name) for arm, name in arms.items()}
            for seed, arms in runs.items()
        },
        "test": {
            seed: {arm: test_line(workdir, name) for arm, name in arms.items()}
            for seed, arms in runs.items()
        },
        "paired": {
            f"{b} - {a}": {
                measure: paired(workdir, runs, a, b, measure) for measure in ("greedy", "pass_at_1")
            }
            for a, b in (("sft", "rft"), ("sft", "online_rft"), ("rft", "online_rft"))
        },
        "seconds": {
            seed: {arm: seconds(workdir, name) for arm, name in arms.items()}
            for seed, arms in runs.items()
        },
    }


CURVES = ("greedy/accuracy", "pass_at/1", "pass_at/4", "policy/entropy",
          "questions/distinct_correct", "cost/sampled_tokens", "cost/updates")  # fmt: skip


def curve(workdir: Path, name: str) -> dict[str, list[Any]]:
    """Validation metrics over a run, by name."""
    lines = metrics.read(workdir / name / "metrics.jsonl")
    rows = [line for line in lines if line["kind"] == "validation"]
    return {key: [row.get(key) for row in rows] for key in ("step", *CURVES)}


def test_line(workdir: Path, name: str) -> dict[str, Any]:
    """The metrics of a run on the test questions."""
    lines = metrics.read(workdir / name / "metrics.jsonl")
    return next(line for line in lines if line["kind"] == "test")


def seconds(workdir: Path, name: str) -> dict[str, float]:
    """Where a run's time went, in seconds."""
    lines = metrics.read(workdir / name / "metrics.jsonl")
    parts = ("sampling", "verifying", "updating", "evaluating", "checkpointing")
    sums = {part: sum(line.get(f"seconds/{part}") or 0.0 for line in lines) for part in parts}
    return sums | {"elapsed": lines[-1]["seconds/elapsed"]}


def per_question(workdir: Path, name: str, measure: str) -> np.ndarray:
    """Correctness of each test question: greedy 0 or 1, or the share of correct samples."""
    rows = read_jsonl(workdir / name / "evaluation" / "test.jsonl", {"question_id": int})
    if measure == "greedy":
        values = [row["greedy_correct"] for row in rows]
        return np.array([np.nan if value is None else value for value in values], float)
    return np.array([row["num_correct"] / row["num_samples"] for row in rows], float)


def paired(
    workdir: Path, runs: dict[str, dict[str, str]], a: str, b: str, measure: str
) -> dict[str, Any]:
    """b - a with 95 % intervals over questions, per seed and of the mean over seeds."""
    values = {
        seed: [per_question(workdir, arms[arm], measure) for arm in (a, b)]
        for seed, arms in runs.items()
    }
    over_seeds = [np.mean([pair[side] for pair in values.values()], axis=0) for side in (0, 1)]
    result = {seed: paired_interval(*pair, seed=0)._asdict() for seed, pair in values.items()} | {
        "all": paired_interval(*over_seeds, seed=0)._asdict()
    }
    differences = [result[seed]["difference"] for seed in values]
    return result | {"standard_deviation_over_seeds": float(np.std(differences, ddof=1))}


def draw(results: dict[str, Any], path: Path) -> None:
    """The figure: accuracy over updates and over sampled tokens, pass@k, entropy, diversity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"sft": "#6b6b6b", "rft": "#0072b2", "online_rft": "#d55e00"}
    names = {"sft": "SFT", "rft": "RFT", "online_rft": "Online RFT"}
    figure, axes = pyplot.subplots(1, 5, figsize=(17, 3.6), constrained_layout=True)
    over = (
        ("step", "pass_at/1", "updates", "pass@1 (validation)"),
        ("cost/sampled_tokens", "pass_at/1", "sampled tokens", "pass@1 (validation)"),
        ("step", "policy/entropy", "updates", "entropy (nats a token)"),
        ("step", "questions/distinct_correct", "updates", "distinct correct of 4"),
    )
    for axis, (x, y, below, title) in zip(axes, over, strict=False):
        for arm in ARMS:
            curves = [arms[arm] for arms in results["curves"].values()]
            for one in curves:
                axis.plot(one[x], one[y], color=colours[arm], alpha=0.25, linewidth=1)
            mean = [np.mean([one[key] for one in curves], axis=0) for key in (x, y)]
            axis.plot(*mean, color=colours[arm], linewidth=2, label=names[arm])
        axis.set_xlabel(below)
        axis.set_title(title)
    axes[0].legend(frameon=False)
    last = axes[-1]
    for arm in ("sft", *ARMS):
        lines = [arms[arm] for arms in results["test"].values()]
        ks = sorted(int(key.split("/")[1]) for key in lines[0] if key.startswith("pass_at/"))
        values = [np.mean([line[f"pass_at/{k}"] for line in lines]) for k in ks]
        last.plot(ks, values, "o-", color=colours[arm], label=names[arm])
    last.set_xscale("log", base=2)
    last.set_xlabel("k")
    last.set_title("pass@k (test)")
    last.legend(frameon=False)
    for axis in axes:
        axis.grid(alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def table(results: dict[str, Any]) -> str:
    """Test results as a Markdown table, means over seeds, and the paired differences."""
    rows = [
        "| | greedy | pass@1 | pass@16 | entropy | distinct correct of 16 |",
        "|---|" + "---|" * 5,
    ]
    keys = ("greedy/accuracy", "pass_at/1", "pass_at/16", "policy/entropy",
            "questions/distinct_correct")  # fmt: skip
    for arm in ("sft", *ARMS):
        lines = [arms[arm] for arms in results["test"].values()]
        means = [np.mean([line[key] for line in lines]) for key in keys]
        shown = [f"{100 * value:.1f} %" for value in means[:3]] + [f"{v:.3f}" for v in means[3:]]
        rows.append(f"| {arm} | " + " | ".join(shown) + " |")
    rows += ["", "| paired difference | measure | points [95 % over questions] | by seed |"]
    rows.append("|---|---|---|---|")
    for pair, measures in results["paired"].items():
        for measure, by_scope in measures.items():
            everything = by_scope["all"]
            by_seed = ", ".join(f"{100 * by_scope[str(s)]['difference']:+.1f}" for s in SEEDS)
            interval = f"[{100 * everything['low']:+.1f}, {100 * everything['high']:+.1f}]"
            shown_difference = f"{100 * everything['difference']:+.1f}"
            rows.append(f"| {pair} | {measure} | {shown_difference} {interval} | {by_seed} |")
    return "\n".join(rows)


def main() -> None:
    """The command line of the study."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--workdir", type=Path, default=Path("runs/arithmetic_study"))
    parser.add_argument("--processes", type=int, default=2, help="how many runs at a time")
    parser.add_argument("--run", help="do only this run, in this process")
    parser.add_argument("--results", type=Path, default=Path("runs/arithmetic_study/results.json"))
    parser.add_argument("--draw", type=Path, help="only draw the figure of this results file")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.run:
        from rft_jax.runs.run import run

        run(arguments.run, experiment(), arguments.workdir)
        return
    if arguments.draw:
        results = json.loads(arguments.draw.read_text(encoding="utf-8"))
        draw(results, arguments.draw.with_suffix(".png"))
        print(table(results))
        return
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    results = study(arguments.workdir, arguments.processes)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results, arguments.results.with_suffix(".png"))
    print(table(results))


if __name__ == "__main__":
    main()
