"""Workdirs as runs leave them, made up: for tests of what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rft_jax.observe.statistics import pass_at_k, pass_ks, standard_error

STEPS, EVERY, QUESTIONS, SAMPLES = 40, 10, 60, 8


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def evaluation(
    level: float, seed: int, *, kind: str, step: int, tokens: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A metrics line and question lines of a policy that is right with probability near `level`."""
    random = np.random.default_rng(7)
    skill = random.normal(0, 1.2, QUESTIONS)
    chance = 1 / (1 + np.exp(-(skill + np.log(level / (1 - level)))))
    random = np.random.default_rng([seed, step])
    greedy = random.random(QUESTIONS) < chance
    correct = random.binomial(SAMPLES, chance)
    line = {
        "step": step, "kind": kind, "greedy/accuracy": float(greedy.mean()),
        "greedy/standard_error": standard_error(greedy.astype(float)), "greedy/undecided": 0,
        **{f"pass_at/{k}": float(pass_at_k(np.full(QUESTIONS, SAMPLES), correct, k).mean())
           for k in pass_ks(SAMPLES)},
        f"maj_at/{SAMPLES}": float((correct > SAMPLES / 2).mean()),
        "sampled/standard_error": standard_error(correct / SAMPLES),
        "policy/entropy": 0.5 - 0.5 * level, "questions/distinct_correct": 3 * level,
        "lengths/mean": 60 - 30 * level, "lengths/truncated": 0.01, "seconds/evaluating": 2.5,
        "cost/sampled_tokens": tokens,
    }  # fmt: skip
    questions = [
        {
            "question_id": i, "greedy_correct": bool(greedy[i]), "greedy_text": "#### 1",
            "num_samples": SAMPLES, "num_correct": int(correct[i]), "num_distinct_correct": 1,
            "majority_correct": bool(correct[i] > SAMPLES / 2),
        }
        for i in range(QUESTIONS)
    ]  # fmt: skip
    return line, questions


def train_line(step: int, level: float, method: str) -> dict[str, Any]:
    line: dict[str, Any] = {
        "step": step, "kind": "train", "objective/value": 1 - level, "cost/updates": step,
        "seconds/updating": 0.8, "seconds/checkpointing": 0.05, "seconds/compiling": 4.0,
        "seconds/elapsed": 3.0 * step, "cost/sampled_tokens": 0,
    }  # fmt: skip
    if method == "sft":
        return line
    sampled = 256
    correct = int(sampled * level)
    rates = np.random.default_rng(step).beta(4 * level, 4 * (1 - level), 32)
    return line | {
        "funnel/sampled": sampled, "funnel/finished": 250, "funnel/parsed": 240,
        "funnel/correct": correct, "funnel/distinct": int(correct * (1 - 0.5 * level)),
        "funnel/kept": int(correct * (1 - 0.6 * level)), "funnel/undecided": 1,
        "questions/pass_rate_histogram": np.histogram(rates, SAMPLES + 1, (0, 1))[0].tolist(),
        "lengths/correct": 50 - 20 * level + step % 3, "lengths/incorrect": 70 - 15 * level,
        "cost/sampled_tokens": step * 12_000, "seconds/sampling": 1.4, "seconds/verifying": 0.2,
        "seconds/verifying_hidden": 0.6,
    }  # fmt: skip


def output_line(step: int, index: int, text: str) -> dict[str, Any]:
    verdict = ("correct", "incorrect", "undecided")[index % 3]
    return {
        "question_id": index // 4, "sample_index": index % 4, "step": step, "text": text,
        "tokens": [5, 6, 7], "log_probs": [-0.1, -0.2, -0.3], "finished": index % 5 != 0,
        "verdict": verdict, "reason": "" if verdict == "correct" else "no answer",
        "question": "Ann has 3 apples and buys 4. How many has she?", "answer": "7", "seed": 0,
    }  # fmt: skip


def make_run(
    workdir: Path, name: str, method: str, start: float, end: float, *, seed: int = 0,
    test: bool = True, text: str = "3 + 4 = <<3+4=7>>7\n#### 7",
) -> Path:  # fmt: skip
    """A finished run whose accuracy goes from about `start` to about `end`."""
    folder = workdir / name
    folder.mkdir(parents=True)
    config = {"method": method, "steps": STEPS, "seed": seed}
    (folder / "config.json").write_text(
        json.dumps(
            {
                "name": name,
                "config": config,
                "versions": {"jax": "0.10.2"},
                "git_commit": "0123456789abcdef",
                "device": "cpu x 1",
            }
        )
    )
    lines = []
    for step in range(STEPS + 1):
        level = start + (end - start) * (1 - np.exp(-2.5 * step / STEPS))
        tokens = 0 if method == "sft" else 12_000 * (STEPS if method == "rft" else step)
        if step:
            lines.append(train_line(step, level, method))
        if step % EVERY == 0:
            line, questions = evaluation(level, seed, kind="validation", step=step, tokens=tokens)
            lines.append(line)
            write_lines(folder / "evaluation" / f"validation-{step:06d}.jsonl", questions)
    if test:
        line, questions = evaluation(end, seed + 1, kind="test", step=STEPS, tokens=tokens)
        lines.append(line)
        write_lines(folder / "evaluation" / "test.jsonl", questions)
    write_lines(folder / "metrics.jsonl", lines)
    if method != "sft":
        for step in range(1, STEPS + 1, 4):
            write_lines(
                folder / "rollouts" / f"step-{step:06d}.jsonl",
                [output_line(step, index, text) for index in range(48)],
            )
    return folder


def make_workdir(workdir: Path, **options: Any) -> Path:
    make_run(workdir, "sft", "sft", 0.05, 0.40, seed=1)
    make_run(workdir, "rft", "rft", 0.40, 0.62, seed=2, **options)
    make_run(workdir, "online_rft", "online_rft", 0.40, 0.85, seed=3, **options)
    (workdir / "experiment.json").write_text('{"runs": ["sft", "rft", "online_rft"]}')
    return workdir
