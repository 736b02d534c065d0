"""One sampling phase: questions in, outputs out, and their verdicts."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from rft_jax.config import DataConfig, ModelConfig
from rft_jax.data.prompts import prompt_text, prompt_tokens
from rft_jax.data.tokenizers.base import Tokenizer
from rft_jax.distributed.collectives import gather
from rft_jax.distributed.mesh import batch_sharding, batch_size_divisor, replicated
from rft_jax.distributed.shards import addressed_rows, put
from rft_jax.keys import Purpose, run_key
from rft_jax.observe.profiling import phase
from rft_jax.observe.progress import Progress
from rft_jax.rollout.gather import gather_samples
from rft_jax.rollout.sampler import Ended, compile_programs, sample_stream
from rft_jax.rollout.steps import in_tokens
from rft_jax.types import Decoded, Judgement, Params, Prompts, Question, Sample
from rft_jax.verification.extract import opened_reasoning
from rft_jax.verification.pool import Item, VerifierPool

BATCHES_AT_ONCE = 16
"""Batches of a block of questions: their prompts' keys and values are on the device together."""


def nowhere(_: str) -> None:
    """Takes no notice of where the work is."""


@dataclass(frozen=True)
class Sampling:
    """What stays the same from one rollout of a run to the next. verifier: None where outputs are
    only sampled; at: told where the work is (distributed/watchdog.py)."""

    model: ModelConfig
    data: DataConfig
    mesh: Mesh
    tokenizer: Tokenizer
    verifier: VerifierPool | None
    seed: int
    at: Callable[[str], None] = nowhere
    compiled: set[tuple[int, ...]] = field(default_factory=set)
    """Shapes whose programs are made: one seen for the first time has all of its made at once."""


class Draft(NamedTuple):
    """A Sample but for its verdict."""

    question_id: int
    sample_index: int
    step: int
    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finished: bool


class Part(NamedTuple):
    """Outputs that ended at about the same time: drafts by their numbers (question's row x G +
    sample index), and the mean entropy over each one's tokens, in nats; steps: of the decode loop
    so far, summed over the shards of the batch."""

    drafts: dict[int, Draft]
    entropies: np.ndarray
    steps: int

    @property
    def num_tokens(self) -> int:
        """Sampled tokens, EOS included."""
        return sum(len(draft.tokens) for draft in self.drafts.values())


class Rollout(NamedTuple):
    """Samples in the order of the questions, G in a row for each; own: those of this process, in
    the same order.

    entropies: mean entropy of the sampling distribution over each output's tokens, in nats.
    decoded: of each call of the sampler. Seconds: of the whole phase without waiting for verdicts;
    of that wait; of verification that ran beside sampling. slow_verdicts: of all processes, see
    types.Judgement.
    """

    samples: list[Sample]
    own: list[Sample]
    entropies: np.ndarray
    seconds_sampling: float
    seconds_verifying: float
    seconds_verifying_hidden: float
    decoded: tuple[Decoded, ...]
    slow_verdicts: int = 0

    @property
    def num_tokens(self) -> int:
        """Sampled tokens, EOS included."""
        return sum(sample.num_tokens for sample in self.samples)


def make_prompts(
    questions: Mapping[int, Question], *, rows: int, data: DataConfig, tokenizer: Tokenizer
) -> Prompts:
    """Right-padded prompts of questions by row, numpy; other rows are fillers with id -1."""
    tokens = np.zeros((rows, data.max_prompt_tokens), np.int32)
    lengths, ids = np.ones(rows, np.int32), np.full(rows, -1, np.int32)
    for row, question in questions.items():
        prompt = prompt_tokens(question.text, data, tokenizer)
        tokens[row, : len(prompt)] = prompt
        lengths[row], ids[row] = len(prompt), question.id
    return Prompts(tokens, lengths, ids)  # type: ignore[arg-type]  # numpy until it is moved


class Block(NamedTuple):
    """Questions that are sampled together. multiple: what their shapes hold a multiple of, so that
    those of all blocks are the same."""

    questions: Sequence[Question]
    multiple: int


def blocks(questions: Sequence[Question], questions_per_batch: int) -> list[Block]:
    """The questions in order, BATCHES_AT_ONCE batches in a block."""
    size = BATCHES_AT_ONCE * questions_per_batch
    multiple = questions_per_batch if len(questions) <= size else size
    starts = range(0, len(questions), size)
    return [Block(questions[first : first + size], multiple) for first in starts]


def sample_outputs(
    params: Params,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    step: int,
    num_samples: int,
    temperature: float,
    purpose: Purpose,
    questions_per_batch: int,
    num_slots: int = 0,
) -> Iterator[Part]:
    """Sample `num_samples` outputs per question, each of which is given out once it has ended,
    while the device decodes the others; temperature 0 is greedy. Of several processes each puts
    the questions of its own rows on its devices, and gets their outputs.

    questions_per_batch: the shapes hold a multiple of this many questions; num_slots: outputs
    decoded at a time, 0 for all.
    """
    mesh = sampling.mesh
    rows = rows_for(len(questions), questions_per_batch, batch_size_divisor(mesh))
    scalars = put(
        (
            run_key(seed=sampling.seed, purpose=purpose),
            np.int32(step),
            np.float32(temperature or 1.0),
        ),
        replicated(mesh),
    )
    here = {row: questions[row] for row in addressed_rows(mesh, rows) if row < len(questions)}
    prompts = make_prompts(here, rows=rows, data=sampling.data, tokenizer=sampling.tokenizer)
    arguments = (params, put(prompts, batch_sharding(mesh)), *scalars)
    settings: dict[str, Any] = {
        "config": sampling.model,
        "num_samples": num_samples,
        "max_new_tokens": sampling.data.max_completion_tokens,
        "eos_ids": sampling.tokenizer.eos_ids,
        "greedy": temperature == 0,
        "num_slots": num_slots,
    }
    shape = (rows, num_samples, num_slots, int(temperature == 0))
    if shape not in sampling.compiled:
        compile_programs(*arguments, **settings)
        sampling.compiled.add(shape)
    for ended in sample_stream(*arguments, **settings):
        drafts = dict(_drafts(questions, ended, sampling.tokenizer, step, num_samples))
        yield Part(drafts, ended.entropies.sum(axis=1) / ended.lengths, ended.steps)


@dataclass
class Outputs:
    """Outputs of one rollout, all sampled, whose verdicts are on their way.

    drafts, entropies: of this process, by number; judging: (numbers, their verdicts when they
    come); steps: of the decode loop. shares: outputs that every process must have whole. The rest
    says what was asked, and when.
    """

    questions: Sequence[Question]
    sampling: Sampling
    step: int
    num_samples: int
    rows: int
    shares: Callable[[Sample], bool] | None
    began: float
    drafts: dict[int, Draft] = field(default_factory=dict)
    entropies: dict[int, float] = field(default_factory=dict)
    judging: list[tuple[list[int], Future[list[Judgement]]]] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    steps: int = 0
    ended: float = 0.0


def sample(
    params: Params,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    step: int,
    num_samples: int,
    temperature: float,
    purpose: Purpose,
    questions_per_batch: int,
    num_slots: int = 0,
    shares: Callable[[Sample], bool] | None = None,
    on_part: Callable[[Part], None] | None = None,
) -> Outputs:
    """Sample outputs as `sample_outputs` does; each is given to the verifier once it has ended,
    while the device decodes the others.

    Args:
        shares: outputs that every process must have whole (gather.py).
        on_part: called with each part of the outputs as it comes.
    """
    assert sampling.verifier is not None, "a rollout verifies"
    rows = rows_for(len(questions), questions_per_batch, batch_size_divisor(sampling.mesh))
    outputs = Outputs(
        questions, sampling, step, num_samples, rows, shares, began=time.perf_counter()
    )
    sampling.at(f"{purpose.name.lower()} of step {step + 1}")
    with phase("sampling"):
        for part in sample_outputs(
            params,
            questions,
            sampling,
            step=step,
            num_samples=num_samples,
            temperature=temperature,
            purpose=purpose,
            questions_per_batch=questions_per_batch,
            num_slots=num_slots,
        ):
            outputs.steps = max(outputs.steps, part.steps)
            outputs.entropies |= zip(part.drafts, part.entropies.tolist(), strict=True)
            items = [
                _item(questions[number // num_samples], draft, sampling, sampling.verifier)
                for number, draft in part.drafts.items()
            ]
            submitted = time.perf_counter()
            future = sampling.verifier.submit(items)
            future.add_done_callback(functools.partial(_note, outputs.spans, submitted))
            outputs.judging.append((list(part.drafts), future))
            outputs.drafts |= part.drafts
            if on_part is not None:
                on_part(part)
    outputs.ended = time.perf_counter()
    return outputs


def _item(question: Question, draft: Draft, sampling: Sampling, verifier: VerifierPool) -> Item:
    """An output for the verifier; a rule has to see that the prompt opened its reasoning."""
    opened = ""
    if verifier.is_rule:
        opened = opened_reasoning(prompt_text(question.text, sampling.data, sampling.tokenizer))
    return Item.of(question, opened + draft.text, draft.finished)


def verify(outputs: Outputs) -> Rollout:
    """Wait for the verdicts that are not there yet, and have all processes know all samples."""
    sampling, step = outputs.sampling, outputs.step
    waiting = time.perf_counter()
    sampling.at(f"verdicts of step {step + 1}")
    own: dict[int, Sample] = {}
    slow = 0
    with phase("verifying"):
        for numbers, future in outputs.judging:
            for number, judgement in zip(numbers, future.result(), strict=True):
                slow += judgement.slow
                draft = outputs.drafts[number]
                own[number] = Sample(
                    **draft._asdict(),
                    verdict=judgement.verdict,
                    reason=judgement.reason,
                    stated=judgement.answer,
                    reward=judgement.reward,
                    steps=in_tokens(judgement.steps, draft.text, draft.tokens, sampling.tokenizer),
                )
    waited = time.perf_counter() - waiting
    # A place of its own: who waits for another one's verdicts is further than that one.
    sampling.at(f"exchange of step {step + 1}")
    own = {number: own[number] for number in sorted(own)}
    samples, entropies = gather_samples(
        own,
        outputs.entropies,
        outputs.questions,
        step=step,
        num_samples=outputs.num_samples,
        rows=outputs.rows,
        mesh=sampling.mesh,
        width=sampling.data.max_completion_tokens,
        shares=outputs.shares,
        tokenizer=sampling.tokenizer,
    )
    of_processes = gather(np.array([outputs.steps, slow], np.int64))
    return Rollout(
        samples=samples,
        own=list(own.values()),
        entropies=entropies,
        seconds_sampling=outputs.ended - outputs.began,
        seconds_verifying=waited,
        seconds_verifying_hidden=_covered(outputs.spans, until=outputs.ended),
        # One whose own outputs end early sees too few of the steps.
        decoded=(_decoded(outputs.questions, samples, int(of_processes[:, 0].max()), sampling),),
        slow_verdicts=int(of_processes[:, 1].sum()),
    )


def _decoded(
    questions: Sequence[Question], samples: Sequence[Sample], steps: int, sampling: Sampling
) -> Decoded:
    data, tokenizer = sampling.data, sampling.tokenizer
    group = len(samples) // len(questions)
    firsts = range(0, len(samples), group)
    return Decoded(
        prompts=tuple(len(prompt_tokens(q.text, data, tokenizer)) for q in questions),
        outputs=tuple(tuple(s.num_tokens for s in samples[n : n + group]) for n in firsts),
        steps=steps,
    )


def rows_for(count: int, questions_per_batch: int, shards: int) -> int:
    """Rows of the batch that `count` questions are in: whole batches, as many rows for each shard.
    Those beyond the questions are fillers: they sample nothing, and take memory."""
    rows = -(-count // questions_per_batch) * questions_per_batch
    return -(-rows // shards) * shards


def showing(progress: Progress) -> Callable[[Part], None]:
    """What moves a bar of outputs on by each part, whichever call of `sample_outputs` it is of."""
    began, outputs, tokens = time.perf_counter(), 0, 0

    def on_part(part: Part) -> None:
        nonlocal outputs, tokens
        outputs, tokens = outputs + len(part.drafts), tokens + part.num_tokens
        progress.update(outputs, tokens_per_second=tokens / (time.perf_counter() - began))

    return on_part


def output_row(
    question: Question, output: Draft | Sample, data: DataConfig, tokenizer: Tokenizer
) -> dict[str, Any]:
    """An output as a row of a file for others to read, `rft-jax verify` among them. log_prob: of
    the whole output, in nats; opened: the mark in the prompt that opens its reasoning, if any."""
    opened = opened_reasoning(prompt_text(question.text, data, tokenizer))
    return (
        dict(question.columns)
        | ({"opened": opened} if opened else {})
        | {
            "question_id": question.id,
            "question": question.text,
            "reference": question.answer,
            "sample_index": output.sample_index,
            "output": output.text,
            "finished": output.finished,
            "num_tokens": len(output.tokens),
            "log_prob": sum(output.log_probs),
        }
    )


def _note(spans: list[tuple[float, float]], since: float, _: Future[Any]) -> None:
    spans.append((since, time.perf_counter()))


def _covered(spans: Sequence[tuple[float, float]], *, until: float) -> float:
    """Seconds before `until` in which at least one of the spans ran."""
    seconds, end = 0.0, -math.inf
    for first, last in sorted(spans):
        first, last = max(first, end), min(last, until)
        seconds += max(last - first, 0.0)
        end = max(end, last)
    return seconds


def _drafts(
    questions: Sequence[Question],
    ended: Ended,
    tokenizer: Tokenizer,
    step: int,
    num_samples: int,
) -> Iterator[tuple[int, Draft]]:
    """(number, draft) of each output."""
    for row, number in enumerate(ended.numbers.tolist()):
        length, finished = int(ended.lengths[row]), bool(ended.finished[row])
        tokens = ended.tokens[row, :length].tolist()
        draft = Draft(
            question_id=questions[number // num_samples].id,
            sample_index=number % num_samples,
            step=step,
            text=tokenizer.decode(tokens[:-1] if finished else tokens),
            tokens=tuple(tokens),
            log_probs=tuple(ended.log_probs[row, :length].tolist()),
            finished=finished,
        )
        yield number, draft
