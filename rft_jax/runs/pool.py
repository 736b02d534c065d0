"""RFT's fixed set: rollouts of the frozen start, sampled once and read from the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rft_jax.config import Config
from rft_jax.data.prompts import check_lengths
from rft_jax.data.stream import Position
from rft_jax.distributed.collectives import from_main, meet
from rft_jax.errors import UserError
from rft_jax.io.paths import Folder
from rft_jax.observe.progress import Progress
from rft_jax.rollout import log as rollout_log
from rft_jax.rollout.engine import Sampling
from rft_jax.rollout.funnel import funnel
from rft_jax.runs.sources import Facts, choose, next_questions, sample_round, seconds_of, writer
from rft_jax.training.packing import TrainingSequence
from rft_jax.types import Params, Question, Sample


def sample_pool(
    params: Params,
    questions: Sequence[Question],
    config: Config,
    sampling: Sampling,
    folder: Folder,
    stopped: Callable[[], int],
) -> dict[str, float] | None:
    """Fill rollouts/ with RFT's pool from the frozen start; None when stopped before the end.

    A rollout that is there whole is not repeated, so a killed run goes on where it was. stopped:
    the same in all processes.
    """
    assert config.pool is not None
    steps = range(config.pool.rollout_steps)
    there = from_main(
        f"{folder.parent.name} pool",
        lambda: [step for step in steps if rollout_log.is_whole(folder, step)],
    )
    seconds: dict[str, float] = {}
    with Progress(len(steps), len(there), f"{folder.parent.name} pool") as progress:
        for step, asked in enumerate(_pool_questions(questions, config)):
            if step in there:
                continue
            if stopped():
                return None
            drawn = sample_round(params, asked, config, sampling, step)
            rollout_log.write(folder, step, drawn.own, asked, seed=config.seed, writer=writer())
            new = seconds_of([drawn])
            seconds = {name: seconds.get(name, 0.0) + value for name, value in new.items()}
            progress.update(
                step + 1,
                acceptance=float(np.mean([sample.accepted for sample in drawn.samples])),
                tokens_per_second=drawn.num_tokens / sum(new.values()),
            )
    return seconds


def _pool_questions(questions: Sequence[Question], config: Config) -> list[list[Question]]:
    """Those of each rollout that fills the pool."""
    assert config.pool is not None
    position, asked = Position(0, 0), []
    for _ in range(config.pool.rollout_steps):
        new, position = next_questions(questions, config, position)
        asked.append(new)
    return asked


def _read_pool(
    folder: Folder, questions: Sequence[Question], config: Config
) -> list[tuple[Question, Sample]]:
    """RFT's own pool, in the order in which its questions were asked, whoever wrote it."""
    meet(f"{folder.parent.name} pool is written")
    pairs = []
    for step, asked in enumerate(_pool_questions(questions, config)):
        place = {question.id: number for number, question in enumerate(asked)}
        of_step = rollout_log.read_step(folder, step)
        pairs += sorted(of_step, key=lambda pair: place.get(pair[0].id, -1))
    return pairs


def sequences(
    questions: Sequence[Question], config: Config, sampling: Sampling, folder: Folder
) -> tuple[list[TrainingSequence], Facts]:
    """RFT's fixed set, from the log in `folder` or from pool.from_rollouts, and its funnel.

    Raises UserError when no output of the pool is accepted, or when the log is not one of this
    run's tokenizer and shapes; DataError when a prompt is too long.
    """
    assert config.pool is not None
    sources = config.pool.from_rollouts or (str(folder),)
    if config.pool.from_rollouts:
        pairs = rollout_log.read_folders(sources)
    else:
        pairs = _read_pool(folder, questions, config)
    asked = list({question.id: question for question, _ in pairs}.values())
    samples = [sample for _, sample in pairs]
    _check_log(", ".join(sources), asked, samples, config, sampling)
    chosen = choose(samples, asked, config, sampling)
    if not chosen.sequences:
        raise UserError(
            f"{', '.join(sources)}: none of {len(samples)} sampled outputs is correct, so there is "
            "nothing to train on; look at them in the report, start from a better model, or sample "
            "more (pool.rollout_steps, rollout.samples_per_question)."
        )
    facts = funnel(samples, num_distinct=chosen.num_distinct, num_kept=chosen.num_kept)
    return chosen.sequences, facts | {
        "sampled_tokens": sum(len(sample.tokens) for sample in samples),
        "sampled_outputs": len(samples),
    }


def _check_log(
    source: str,
    questions: Sequence[Question],
    samples: Sequence[Sample],
    config: Config,
    sampling: Sampling,
) -> None:
    """Raise unless the outputs fit the run's shapes and their tokens are their text."""
    data, tokenizer = config.data, sampling.tokenizer
    rows = config.model.vocab_size or tokenizer.vocab_size
    check_lengths(
        questions,
        source=source,
        data=data,
        tokenizer=tokenizer,
        demonstrations=False,
    )
    for sample in samples:
        tokens, place = sample.tokens, f"step {sample.step}, question {sample.question_id}"
        if not 0 < len(tokens) <= data.max_completion_tokens:
            raise UserError(
                f"{source}: an output of {place} has {len(tokens)} tokens and "
                f"data.max_completion_tokens is {data.max_completion_tokens}: set it to that of "
                "the run that sampled."
            )
        ids = all(0 <= token < rows for token in tokens)
        ends = not sample.finished or tokens[-1] in tokenizer.eos_ids
        shown = tokens[:-1] if sample.finished else tokens
        if not ids or not ends or tokenizer.decode(shown) != sample.text:
            raise UserError(
                f"{source}: the tokens of an output of {place} are not its text under "
                f"{tokenizer.path}: name the tokenizer it was sampled with as tokenizer.path."
            )
