"""What the processes of a job tell each other about the outputs they have verified.

Each process decodes, verifies and logs the outputs of its own rows. Of every output all processes
learn the facts that steps are decided by: verdict, reason, length, log-prob, entropy. Of those that
are trained on they learn tokens and log-probs too, eight bytes a token (and, where a checker says
any, the rewards of steps): an update packs its sequences into rows whose places have nothing to do
with where they were sampled, so that all devices have equally much to do, and a batch is the same
however many processes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from rft_jax.data.tokenizers.base import Tokenizer
from rft_jax.distributed.collectives import gather
from rft_jax.distributed.shards import rows_by_process
from rft_jax.rollout.steps import Steps
from rft_jax.types import Question, Remote, Sample, Verdict

REASON_BYTES = 64
"""Of a reason, as far as other processes are told it."""

_VERDICTS = tuple(Verdict)


def _record(width: int) -> np.dtype:
    """One output; width: tokens of the longest that is shared, 0 where none is."""
    return np.dtype([
        ("there", "?"), ("shared", "?"), ("finished", "?"), ("verdict", "u1"),
        ("sample_index", "<i4"), ("row", "<i4"), ("length", "<i4"), ("entropy", "<f8"),
        ("log_prob", "<f8"), ("reward", "<f8"), ("steps", "<i4"),
        ("reason", f"S{REASON_BYTES}"), ("tokens", "<i4", (width,)), ("log_probs", "<f4", (width,)),
    ])  # fmt: skip


_STEP = np.dtype([("place", "<i4"), ("reward", "<f8")])


def _table(steps: Mapping[int, Steps], rows: int, width: int) -> np.ndarray:
    """The steps of outputs by their places, in rows of this many."""
    table = np.zeros((rows, width), _STEP)
    for place, of_one in steps.items():
        table[place, : len(of_one)] = list(of_one)
    return table


def _short(reason: str) -> bytes:
    """The characters that fit, whole."""
    return reason.encode()[:REASON_BYTES].decode(errors="ignore").encode()


def gather_samples(
    own: Mapping[int, Sample],
    entropies: Mapping[int, float],
    questions: Sequence[Question],
    *,
    step: int,
    num_samples: int,
    rows: int,
    mesh: Mesh,
    width: int,
    shares: Callable[[Sample], bool] | None,
    tokenizer: Tokenizer,
) -> tuple[list[Sample], np.ndarray]:
    """All outputs of a rollout, in the order of their numbers (question's row x G + sample index),
    and their entropies.

    own, entropies: of this process's outputs, by number, in order; rows: of the batch that the
    questions were in; width: the most tokens of an output; shares: which outputs all processes must
    have whole.
    """
    if jax.process_count() == 1:
        return [own[number] for number in own], np.array([entropies[number] for number in own])
    width = width if shares else 0
    of_process = [held[held < len(questions)] for held in rows_by_process(mesh, rows)]
    capacity = max(len(held) for held in of_process) * num_samples
    mine = np.zeros(capacity, _record(width))
    steps: dict[int, Steps] = {}
    for place, (number, sample) in enumerate(own.items()):
        record = mine[place]
        record["there"], record["finished"] = True, sample.finished
        record["row"], record["sample_index"] = divmod(number, num_samples)
        record["verdict"] = _VERDICTS.index(sample.verdict)
        record["length"], record["entropy"] = sample.num_tokens, entropies[number]
        record["log_prob"] = sample.log_prob
        record["reward"] = np.nan if sample.reward is None else sample.reward
        record["reason"] = _short(sample.reason)
        if shares and shares(sample):
            record["shared"] = True
            record["tokens"][: sample.num_tokens] = sample.tokens
            record["log_probs"][: sample.num_tokens] = sample.log_probs
            record["steps"] = len(sample.steps)
            steps[place] = sample.steps
    total = len(questions) * num_samples
    samples: dict[int, Sample] = dict(own)
    of_all = np.zeros(total)
    records = gather(mine).reshape(-1)
    most = int(records["steps"].max())
    table = np.zeros((len(records), 0), _STEP)
    if most:
        table = gather(_table(steps, capacity, most)).reshape(-1, most)
    for record, of_record in zip(records, table, strict=True):
        if not record["there"]:
            continue
        number = int(record["row"]) * num_samples + int(record["sample_index"])
        of_all[number] = record["entropy"]
        if number not in own:
            question, told = questions[int(record["row"])], of_record[: record["steps"]]
            samples[number] = _told(record, question, step, tokenizer, tuple(told.tolist()))
    return [samples[number] for number in range(total)], of_all


def _told(
    record: np.void, question: Question, step: int, tokenizer: Tokenizer, steps: Steps
) -> Sample:
    length, finished = int(record["length"]), bool(record["finished"])
    verdict, reason = _VERDICTS[record["verdict"]], bytes(record["reason"]).decode()
    address = (question.id, int(record["sample_index"]), step)
    reward = None if np.isnan(record["reward"]) else float(record["reward"])
    if not record["shared"]:
        return Remote(
            *address, "", (), (), finished, verdict, reason,
            reward=reward, length=length, sum_log_probs=float(record["log_prob"]),
        )  # fmt: skip
    tokens = record["tokens"][:length].tolist()
    text = tokenizer.decode(tokens[:-1] if finished else tokens)
    log_probs = tuple(record["log_probs"][:length].tolist())
    return Sample(
        *address, text, tuple(tokens), log_probs, finished, verdict, reason,
        reward=reward, steps=steps,
    )  # fmt: skip
