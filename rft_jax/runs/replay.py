"""Replay: outputs that are rehearsed beside the policy's own, in every update (config section
`replay`).

An update ascends J + w * (1/M) * sum over M replayed outputs of 1/|o| sum_t log pi_theta(o_t | q,
o_<t), whose expectation is J plus w times the same mean over the whole set: the M are the next ones
of a stream that goes through the set epoch after epoch, in an order of its own, and its position is
part of a checkpoint.

What follows from that: each of several updates on a rollout has M outputs of its own; a step
without an output of the policy to train on makes an update on the replayed ones only; their
questions are not asked; they have no importance ratio, no KL and no entropy bonus, and no metric of
the policy's own outputs counts them, nor does batch filling; at a temperature other than 1 pi_theta
is the tempered policy for them too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rft_jax.checkpoint.inputs import Inputs, of_outputs, of_questions
from rft_jax.config import Config
from rft_jax.data import stream
from rft_jax.data.prompts import completion_tokens, prompt_tokens, split_by_length
from rft_jax.data.sources import load
from rft_jax.data.stream import Position
from rft_jax.errors import UserError
from rft_jax.rollout import log as rollout_log
from rft_jax.rollout.engine import Sampling
from rft_jax.runs import setup
from rft_jax.runs.sources import check_log
from rft_jax.training.packing import TrainingSequence
from rft_jax.training.selection import reduced
from rft_jax.types import Question

_ORDER = 2**62
"""Added to the seed: questions, those of a schedule too, are asked in orders of smaller numbers."""


@dataclass(frozen=True)
class Replay:
    """The replayed outputs of a run, none without the section.

    sequences: all of them, each with its weight in an update; per_step: M; inputs: digests of where
    they are from.
    """

    sequences: Sequence[TrainingSequence] = ()
    per_step: int = 0
    seed: int = 0
    inputs: Inputs = field(default_factory=dict)

    def take(self, position: Position) -> tuple[list[TrainingSequence], Position]:
        """Those of the next update, and the position after them."""
        if not self.sequences:
            return [], position
        rows, position = stream.take(
            len(self.sequences), self.seed + _ORDER, position, self.per_step
        )
        return [self.sequences[row] for row in rows], position


def open_replay(
    name: str, config: Config, questions: setup.Questions, sampling: Sampling
) -> Replay:
    """What the run `name` replays.

    Args:
        name: of the run.
        config: of it.
        questions: of it.
        sampling: its prompts, shapes and tokenizer count.

    Raises:
        UserError: no output can be replayed, or the log is not one of the run's tokenizer and
            shapes.
        DataError: a question has no solution, a prompt or a demonstration is too long (unless
            data.drop_too_long), or the log is damaged.
    """
    settings, data, tokenizer = config.replay, config.data, sampling.tokenizer
    if settings is None:
        return Replay()
    folders, source = settings.from_rollouts, settings.source or data.train
    asked: Mapping[int, Question]
    inputs: Inputs = {}  # those of data.train are known
    if folders:
        source, pairs = ", ".join(folders), rollout_log.read_folders(folders)
        asked = {question.id: question for question, _ in pairs}
        inputs["replay"] = of_outputs(source, pairs)
    elif settings.source:
        asked = {question.id: question for question in load(source, data.data_dir)}
        inputs["replay"] = of_questions(source, asked.values())
    else:
        asked = {question.id: question for question in questions.parts["data.train"]}
    fitting, sentence = split_by_length(
        list(asked.values()), source=source, data=data, tokenizer=tokenizer,
        demonstrations=not folders,
    )  # fmt: skip
    setup.settle_too_long([sentence], data)
    ids = {question.id for question in fitting}
    if folders:
        accepted = [one for _, one in pairs if one.accepted and one.question_id in ids]
        check_log(source, accepted, config, sampling)
        kept = reduced(accepted, config.selection)[1]
        outputs = [(asked[one.question_id], one.tokens) for one in kept]
    else:
        outputs = [(q, tuple(completion_tokens(q.solution or "", tokenizer))) for q in fitting]
    if not outputs:
        raise UserError(
            f"{source}: replay finds no accepted output and no demonstration there: name other "
            "replay.from_rollouts or replay.source, or leave the section out."
        )
    if folders or settings.source:
        setup.warn_of_shared(name, {"replay": fitting, **questions.evaluated})
    sequences = [
        TrainingSequence(
            prompt_tokens(question.text, data, tokenizer),
            tokens,
            settings.weight / settings.sequences_per_step,
            replayed=True,
        )
        for question, tokens in outputs
    ]
    return Replay(sequences, settings.sequences_per_step, config.seed, inputs)
