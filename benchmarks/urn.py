"""An urn: one question, ten correct and ten wrong answers, a softmax policy over them.

    python -m benchmarks.urn [--runs 200]

prints what is left of the correct answers once the question is solved, without and with each remedy
of docs/collapse.md. The exact gradient of the pass rate keeps all ten. A policy that is trained on
groups of its own samples loses some by chance, as positive-only training of a language model does.
Coefficients, selection, weights, the KL, what is replayed and what follows the entropy are those of
rft_jax, by the settings of a run.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rft_jax.config import (
    Config,
    DataConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ReplayConfig,
    RolloutConfig,
    SelectionConfig,
    TokenizerConfig,
    UpdateConfig,
)
from rft_jax.data.stream import Position
from rft_jax.observe.tables import markdown
from rft_jax.runs.replay import Replay
from rft_jax.training.control import Control
from rft_jax.training.objective import KL, objective
from rft_jax.training.packing import TrainingSequence
from rft_jax.training.selection import select, training_sequences, weigh
from rft_jax.types import Sample, Verdict

ANSWERS, CORRECT = 20, 10
SOLVED, MOST_STEPS = 0.95, 2000
RUNS = 200


def settings(**changes: Any) -> Config:
    """Online RFT with groups of 8 at a rate of 0.5; changes: fields or sections of the config."""
    base = Config(
        method="online_rft",
        data=DataConfig(
            train="urn", validation="urn", max_prompt_tokens=1, max_completion_tokens=1
        ),
        tokenizer=TokenizerConfig(path="urn"),
        steps=MOST_STEPS,
        init_from="run:start",
        rollout=RolloutConfig(questions_per_step=1),
        selection=SelectionConfig(),
        objective=ObjectiveConfig(denominator="sampled"),
        update=UpdateConfig(row_length=2),
        optimizer=OptimizerConfig(learning_rate=0.5),
    )
    return replace(base, **changes)


def with_objective(**changes: Any) -> Config:
    """With another objective."""
    return settings(objective=ObjectiveConfig(denominator="sampled", **changes))


def with_rollout(**changes: Any) -> Config:
    """With another rollout."""
    return settings(rollout=RolloutConfig(questions_per_step=1, **changes))


REMEDIES: Mapping[str, Config] = {
    "none": settings(),
    'method="rloo"': settings(method="rloo"),
    'method="w_reinforce"': settings(method="w_reinforce"),
    'method="nsr"': settings(method="nsr"),
    'selection.dedupe="text"': settings(selection=SelectionConfig(dedupe="text")),
    "selection.max_per_question=2": settings(selection=SelectionConfig(max_per_question=2)),
    "optimizer.learning_rate / 4": settings(optimizer=OptimizerConfig(learning_rate=0.125)),
    "rollout.samples_per_question=32": with_rollout(samples_per_question=32),
    "objective.kl_coefficient=0.1, k2": with_objective(kl_coefficient=0.1, kl_estimator="k2"),
    "objective.kl_coefficient=0.1, k3": with_objective(kl_coefficient=0.1),
    "objective.entropy_coefficient=0.1": with_objective(entropy_coefficient=0.1),
    "objective.entropy_target=2.3, entropy_step=0.01": with_objective(
        entropy_target=2.3, entropy_step=0.01
    ),
    "replay.weight=0.1, of the start's correct answers": settings(
        replay=ReplayConfig(sequences_per_step=1, weight=0.1)
    ),
    "replay.weight=0.3, of the start's correct answers": settings(
        replay=ReplayConfig(sequences_per_step=1, weight=0.3)
    ),
    "rollout.temperature=1.3": with_rollout(temperature=1.3),
    "rollout.temperature_target=2.99, the start's, temperature_step=0.01": with_rollout(
        temperature_target=2.99, temperature_step=0.01
    ),
    "rollout.temperature_target=2.4, temperature_step=0.01": with_rollout(
        temperature_target=2.4, temperature_step=0.01
    ),
}
"""By what is set."""
AVERAGE = "convert --average START=0.5, after it"


class Left(NamedTuple):
    """Means over runs at the end. modes: effective number of correct answers, exp of their entropy;
    one: share of runs with more than half of the correct mass on one answer; pass_rate: at
    temperature 1; outputs: sampled until then."""

    modes: float
    one: float
    pass_rate: float
    outputs: float


@functools.cache
def output(question: int, answer: int, index: int) -> Sample:
    """An answer as an output of one token."""
    return Sample(
        question_id=question,
        sample_index=index,
        step=0,
        text=str(answer),
        tokens=(answer,),
        log_probs=(-1.0,),
        finished=True,
        verdict=Verdict.CORRECT if answer < CORRECT else Verdict.INCORRECT,
        reason="",
    )


def softmax(scores: np.ndarray) -> np.ndarray:
    """Chances of the answers."""
    chances = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: np.ndarray = chances / chances.sum(axis=-1, keepdims=True)
    return found


class Batch(NamedTuple):
    """What the runs train on, a row each, numpy. answers, weights, kl_weights: of their outputs;
    bonus: of the entropy; rehearsed, rehearsed_weights: what is replayed."""

    answers: Any
    weights: Any
    kl_weights: Any
    bonus: Any
    rehearsed: Any
    rehearsed_weights: Any


@functools.partial(jax.jit, static_argnames=("kl_coefficient", "kl_estimator"))
@functools.partial(jax.grad, argnums=0)
def gradient(
    scores: Array, temperatures: Array, batch: Batch, kl_coefficient: float, kl_estimator: str
) -> Array:
    """Of every run's objective; the policy starts with equal chances."""

    def of(answers: Array) -> Array:
        return jnp.take_along_axis(every, answers, axis=1)

    every = jax.nn.log_softmax(scores / temperatures[:, None])
    log_probs, start = of(batch.answers), -jnp.log(float(ANSWERS))
    kl = KL[kl_estimator](log_probs, jnp.full_like(log_probs, start))
    entropies = -jnp.sum(jnp.exp(every) * every, axis=1)
    return (
        objective(log_probs, batch.weights)
        - kl_coefficient * jnp.sum(batch.kl_weights * kl)
        + jnp.sum(batch.bonus * entropies)
        + objective(of(batch.rehearsed), batch.rehearsed_weights)
    )


def trained(run: Config, runs: int = RUNS, seed: int = 0) -> tuple[np.ndarray, float]:
    """The scores of each of many runs when it has solved the question, and outputs of a run."""
    assert run.rollout is not None
    rng, scores, group = np.random.default_rng(seed), np.zeros((runs, ANSWERS)), run.rollout
    size, per_step = group.samples_per_question, run.replay.sequences_per_step if run.replay else 1
    controls, positions, sampled = [Control()] * runs, [Position()] * runs, 0
    replays = [_replay(run, number) for number in range(runs)]
    for _ in range(MOST_STEPS):
        going = np.flatnonzero(softmax(scores)[:, :CORRECT].sum(axis=1) < SOLVED)
        if not going.size:
            break
        sampled += size * going.size
        for one in going:
            controls[one] = controls[one].next(run)
        temperatures = np.array([one.temperature or group.temperature for one in controls])
        chances = softmax(scores / temperatures[:, None])
        drawn = (rng.random((runs, size, 1)) > chances.cumsum(axis=1)[:, None]).sum(axis=2)
        drawn = np.minimum(drawn, ANSWERS - 1)
        samples = [output(int(q), int(a), n) for q in going for n, a in enumerate(drawn[q])]
        kept = select(samples, run)
        batch = Batch(
            np.zeros((runs, size), int),
            np.zeros((runs, size)),
            np.zeros((runs, size)),
            np.zeros(runs),
            np.zeros((runs, per_step), int),
            np.zeros((runs, per_step)),
        )
        counts = np.zeros(runs, int)
        for sequence in training_sequences(kept, weigh(kept, run), lambda q: (q,), run):
            place = sequence.prompt[0], counts[sequence.prompt[0]]
            counts[sequence.prompt[0]] += 1
            batch.answers[place] = sequence.completion[0]
            # Each run is one of its own, and not a part of the others' batch.
            batch.weights[place] = going.size * float(sequence.weight)
            batch.kl_weights[place] = going.size * sequence.kl_weight
        entropies = -(chances * np.log(chances)).sum(axis=1)
        for one in going:
            controls[one] = controls[one]._replace(entropy=float(entropies[one]))
            batch.bonus[one] = controls[one].bonus(run) * (counts[one] > 0)
            rehearsed, positions[one] = replays[one].take(positions[one])
            for n, sequence in enumerate(rehearsed):
                batch.rehearsed[one, n] = sequence.completion[0]
                batch.rehearsed_weights[one, n] = float(sequence.weight)
        slopes = gradient(
            scores, temperatures, batch, run.objective.kl_loss, run.objective.kl_estimator
        )
        scores = scores + run.optimizer.learning_rate * np.asarray(slopes, np.float64)
    return scores, sampled / runs


def _replay(run: Config, number: int) -> Replay:
    """Of the correct answers, each once, as the start has sampled them."""
    if run.replay is None:
        return Replay()
    weight = run.replay.weight / run.replay.sequences_per_step
    answers = [TrainingSequence((0,), (one,), weight, replayed=True) for one in range(CORRECT)]
    return Replay(answers, run.replay.sequences_per_step, number)


def left(scores: np.ndarray, outputs: float) -> Left:
    """What is left of the correct answers."""
    correct = softmax(scores)[:, :CORRECT]
    shares = correct / correct.sum(axis=1, keepdims=True)
    modes = np.exp(-(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1))
    one = (shares.max(axis=1) > 0.5).mean()
    return Left(float(modes.mean()), float(one), float(correct.sum(axis=1).mean()), outputs)


def table(found: Mapping[str, Left]) -> str:
    """Markdown."""
    rows: Sequence[tuple[str, ...]] = [
        (f"`{name}`", f"{one.modes:.2f}", f"{one.one:.2f}", f"{one.pass_rate:.2f}",
         f"{one.outputs:,.0f}")
        for name, one in found.items()
    ]  # fmt: skip
    header = ("remedy", "modes of 10", "one above half", "pass rate", "outputs")
    return markdown(header, rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    runs = parser.parse_args().runs
    found: dict[str, Left] = {}
    for name, run in REMEDIES.items():
        scores, outputs = trained(run, runs)
        found[name] = left(scores, outputs)
        if name == "none":
            found[AVERAGE] = left(scores / 2, outputs)
    print(table(found))


if __name__ == "__main__":
    main()
