"""`rft-jax evaluate`: a policy on questions, with intervals, and every output kept."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rft_jax.checkpoint.policy import Policy
from rft_jax.checkpoint.provenance import git_commit, versions
from rft_jax.checkpoint.start import to_sample_from
from rft_jax.commands.ask import Asked, verifier_of
from rft_jax.commands.options import RESULTS, Measuring
from rft_jax.config import EvaluationConfig
from rft_jax.distributed.mesh import make_mesh
from rft_jax.errors import ConfigError
from rft_jax.evaluation.estimates import Estimate, estimates
from rft_jax.evaluation.evaluate import Outputs, draw, measure, own_votes, write_rows
from rft_jax.io.paths import check_folder, write_atomically, writing
from rft_jax.observe.progress import Progress
from rft_jax.rollout.engine import Sampling, output_row, showing
from rft_jax.types import Params, Question, Sample, Verdict
from rft_jax.verification.pool import VerifierPool
from rft_jax.verification.rules import Limits, VerifierSpec

METRICS, QUESTIONS, OUTPUTS = RESULTS
"""What the folder gets. The first is written last."""


class Evaluated(NamedTuple):
    """What an evaluation found.

    estimates: rates with their intervals; metrics: these and whatever else was measured; settings:
    everything that the numbers depend on; questions, outputs: a row for each. Its text is a table.
    """

    estimates: dict[str, Estimate]
    metrics: dict[str, float | None]
    settings: dict[str, Any]
    questions: list[dict[str, Any]]
    outputs: list[dict[str, Any]]

    def __str__(self) -> str:
        """The rates with their intervals in Markdown, and the other figures below."""
        return _table(self.estimates, self.metrics)


def evaluate(
    policy: Policy, asked: Asked, measuring: Measuring, params: Params | None = None
) -> Evaluated:
    """Evaluate a policy; with a run's own settings the numbers are those that it logged.

    params: of the policy, where they are loaded already. Raises VerifierError when the verifier
    cannot run, ConfigError for options that do nothing.
    """
    drawing = _drawing(policy, asked, measuring)
    spec, limits = verifier_of(policy, measuring.judging)
    num_samples = drawing.test_samples_per_question
    mesh = make_mesh(asked.mesh)
    total = len(asked.questions) * (1 + num_samples)
    with VerifierPool(spec, limits) as verifier:
        sampling = Sampling(policy.model, asked.data, mesh, asked.tokenizer, verifier, asked.seed)
        params = to_sample_from(policy, mesh) if params is None else params
        with Progress(total, 0, f"evaluate {policy.name}", unit="output") as progress:
            outputs = draw(
                params,
                asked.questions,
                sampling,
                drawing,
                num_samples=num_samples,
                on_part=showing(progress),
            )
        votes = own_votes(asked.questions, outputs, verifier)
    metrics, rows = measure(asked.questions, outputs, votes)
    rates = estimates(outputs, votes)
    metrics |= {name: one.value for name, one in rates.items()}
    if outputs.sampled is not None:
        metrics["sampled/undecided"] = _undecided(outputs.sampled.samples)
    return Evaluated(
        rates,
        {name: _number(value) for name, value in metrics.items()},
        _settings(policy, asked, drawing, spec, limits),
        _question_rows(asked.questions, rows),
        _output_rows(asked, outputs),
    )


def write(policy: Policy, asked: Asked, measuring: Measuring, folder: Path) -> Evaluated:
    """Evaluate, and write the results to a folder.

    Raises UserError for a folder that holds results or cannot be written, and what `evaluate`
    raises.
    """
    check_folder(folder, RESULTS)
    with writing(folder, f"--out {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    done = evaluate(policy, asked, measuring)
    content = {
        "checkpoint": policy.name,
        "step": policy.step,
        "questions": asked.source,
        "num_questions": len(asked.questions),
        "metrics": done.metrics,
        "intervals_95": {name: [one.low, one.high] for name, one in done.estimates.items()},
        "settings": done.settings,
        **_origin(make_mesh(asked.mesh).size),
    }
    with writing(folder, f"--out {folder}"):
        write_rows(folder / OUTPUTS, done.outputs)
        write_rows(folder / QUESTIONS, done.questions)
        write_atomically(folder / METRICS, json.dumps(content, indent=2) + "\n")
    return done


def _table(rates: Mapping[str, Estimate], metrics: Mapping[str, float | None]) -> str:
    lines = ["| measure | % | 95 % interval | questions |", "|---|---|---|---|"]
    for name, (value, low, high, questions) in rates.items():
        shown = name.replace("greedy/", "greedy ").replace("_at/", "@")
        interval = "-" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
        rate = "-" if value is None else f"{100 * value:.1f}"
        lines.append(f"| {shown} | {rate} | {interval} | {questions:,} |")
    known = {name: value for name, value in metrics.items() if value is not None}
    undecided = max(known["greedy/undecided"], known.get("sampled/undecided", 0.0))
    return "\n".join(
        [
            *lines,
            f"\nentropy: {known['policy/entropy']:.3f} nats a token; "
            f"length: {known['lengths/mean']:.1f} tokens; "
            f"truncated: {known['lengths/truncated']:.1%}; undecided: {undecided:.1%}",
        ]
    )


def _drawing(policy: Policy, asked: Asked, measuring: Measuring) -> EvaluationConfig:
    """How many outputs are drawn, and how."""
    own = policy.config.evaluation if policy.config else EvaluationConfig()
    samples = measuring.samples_per_question
    samples = own.test_samples_per_question if samples is None else samples
    if not samples and measuring.temperature is not None:
        raise ConfigError(
            "temperature does nothing without samples: give samples_per_question or leave it out."
        )
    return EvaluationConfig(
        test_samples_per_question=samples,
        temperature=measuring.temperature or own.temperature,
        questions_per_batch=asked.questions_per_batch,
    )


def _settings(
    policy: Policy, asked: Asked, drawing: EvaluationConfig, spec: VerifierSpec, limits: Limits
) -> dict[str, Any]:
    """Everything that the numbers depend on."""
    data = asked.data
    samples = drawing.test_samples_per_question
    return {
        "samples_per_question": samples,
        "temperature": drawing.temperature if samples else None,
        "seed": asked.seed,
        "prompt_format": data.prompt_format,
        "prompt_template": data.template,
        "system": data.system,
        "date": data.date,
        "template_variables": list(data.template_variables),
        "stop_tokens": list(data.stop_tokens),
        "max_prompt_tokens": data.max_prompt_tokens,
        "max_completion_tokens": data.max_completion_tokens,
        "questions_per_batch": asked.questions_per_batch,
        "compute_dtype": policy.model.compute_dtype,
        "mesh": asdict(asked.mesh),
        "data_dir": data.data_dir,
        "verifier": spec.name,
        "comparison": spec.comparison,
        "checks": list(spec.checks),
        "tolerance": str(spec.tolerance),
        "workers": limits.workers,
        "timeout_seconds": limits.timeout_seconds,
    }


def _origin(num_devices: int) -> dict[str, Any]:
    commit = git_commit()
    return {
        "versions": versions(),
        "git_commit": commit.commit if commit else None,
        "dirty": commit.dirty if commit else None,
        "device": jax.devices()[0].device_kind,
        "num_devices": num_devices,
    }


def _question_rows(
    questions: Sequence[Question], rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    return [
        {**row, "question": question.text, "reference": question.answer}
        for question, row in zip(questions, rows, strict=True)
    ]


def _output_rows(asked: Asked, outputs: Outputs) -> list[dict[str, Any]]:
    """The greedy outputs in order, then the sampled ones."""
    rows, questions = [], asked.questions
    for greedy, drawn in ((True, outputs.greedy), (False, outputs.sampled)):
        samples = drawn.samples if drawn else []
        size = len(samples) // len(questions)
        rows += [
            output_row(questions[number // size], sample, asked.data, asked.tokenizer)
            | {"greedy": greedy, "verdict": sample.verdict.value, "reason": sample.reason}
            for number, sample in enumerate(samples)
        ]
    return rows


def _undecided(samples: Sequence[Sample]) -> float:
    return sum(sample.verdict is Verdict.UNDECIDED for sample in samples) / len(samples)


def _number(value: float | None) -> float | None:
    """JSON has no NaN."""
    return None if value is None or math.isnan(value) else value
