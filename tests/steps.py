"""One step without a model: stand-ins for the rollout and the update around what decides."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from enumeration import sampling

from rft_jax.config import Config
from rft_jax.data.prompts import prompt_tokens
from rft_jax.rollout.engine import Outputs, Rollout, Sampling
from rft_jax.runs import loop, sources
from rft_jax.runs.state import Run, State
from rft_jax.runs.utilization import meter
from rft_jax.training.packing import TrainingSequence, pack_step
from rft_jax.training.selection import select, training_sequences, weigh
from rft_jax.types import Question, Sample
from rft_jax.verification.canary import FirstOutputs

Draw = Callable[..., Rollout]
"""(questions, step=, num_samples=, ...) -> the verified samples of a round."""


class Chosen(NamedTuple):
    sequences: list[TrainingSequence]
    num_distinct: int
    num_kept: int


def choose(
    samples: Sequence[Sample],
    questions: Sequence[Question],
    config: Config,
    sampling: Sampling,
) -> Chosen:
    """Verified samples -> weighted sequences, as a step of one round has them."""
    prompts = {q.id: prompt_tokens(q.text, config.data, sampling.tokenizer) for q in questions}
    kept = select(samples, config)
    sequences = training_sequences(kept, weigh(kept, config), prompts.__getitem__, config)
    return Chosen(sequences, kept.num_distinct, len(kept.samples))


@contextlib.contextmanager
def rollouts(draw: Draw) -> Iterator[None]:
    """Within it `draw` stands in for sampling and verifying."""

    def outputs(params: Any, questions: Sequence[Question], sampling: Any, **options: Any) -> Any:
        waiting = mock.create_autospec(Outputs, instance=True)
        waiting.questions = questions
        waiting.drawn = draw(questions, sampling=sampling, **options)
        return waiting

    with (
        mock.patch.object(sources, "sample", outputs),
        mock.patch.object(loop, "verify", lambda waiting: waiting.drawn),
        mock.patch.object(sources, "verify", lambda waiting: waiting.drawn),
    ):
        yield


class Stepped(NamedTuple):
    """One step: what it trained on, and what it told."""

    sequences: list[TrainingSequence]
    state: State
    facts: dict[str, Any]


def steps(
    config: Config,
    source: sources.Source,
    folder: Path,
    draw: Draw,
    count: int,
    *,
    first: State | None = None,
    policy: Callable[[], Any] = lambda: None,
    update: Callable[..., Any] = lambda train, batch, **place: (train, {"objective/value": 0.0}),
) -> list[Stepped]:
    """Steps of `loop.step`, one after the other; draw: stands in for sampling and verifying."""
    run = mock.create_autospec(Run, instance=True)
    run.first_outputs = FirstOutputs(config, resumed=True)
    run.config, run.folder, run.sampling = config, folder, sampling()
    run.meter = meter(config, 8, device_kind="cpu", count=1)
    run.rollout_params = lambda params: policy()
    run.update = update
    trained: list[list[TrainingSequence]] = []

    def packed(sequences: Sequence[TrainingSequence], config: Config) -> Any:
        trained[-1] = list(sequences)
        return pack_step(sequences, config)

    state, done = first or State(mock.MagicMock()), list[Stepped]()
    with rollouts(draw), mock.patch.object(loop, "pack_step", packed):
        for _ in range(count):
            trained.append([])
            state, facts = loop.step(run, source, state)
            done.append(Stepped(trained[-1], state, facts))
    return done
