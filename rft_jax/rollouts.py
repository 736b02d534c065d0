"""One sampling phase: questions in, verified samples out; and the log that keeps every output."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rft_jax.batches import Completions, Params, Prompts
from rft_jax.config import DataConfig, ModelConfig
from rft_jax.data.prompts import prompt_tokens
from rft_jax.data.tokenizer import Tokenizer
from rft_jax.keys import Purpose, run_key
from rft_jax.parallel.mesh import batch_sharding, batch_size_divisor, replicated
from rft_jax.records import Question, Sample
from rft_jax.sampling.sampler import sample
from rft_jax.verification.pool import Item, VerifierPool


@dataclass(frozen=True)
class Sampling:
    """What stays the same from one rollout of a run to the next."""

    model: ModelConfig
    data: DataConfig
    mesh: Mesh
    tokenizer: Tokenizer
    verifier: VerifierPool
    seed: int


class Rollout(NamedTuple):
    """Samples in the order of the questions, G in a row for each.

    entropies: mean entropy of the sampling distribution over each output's tokens, in nats.
    Seconds: of the whole phase without waiting for verdicts; of that wait; of the verification
    that went on beside sampling.
    """

    samples: list[Sample]
    entropies: np.ndarray
    seconds_sampling: float
    seconds_verifying: float
    seconds_verifying_hidden: float

    @property
    def num_tokens(self) -> int:
        """Sampled tokens, EOS included."""
        return sum(len(sample.tokens) for sample in self.samples)


def _prompt_width(longest: int, limit: int) -> int:
    """Prompts are padded to one of few widths: the limit, or it halved while 32 or more remain."""
    width = limit
    while width // 2 >= max(longest, 32):
        width //= 2
    return width


def make_prompts(
    questions: Sequence[Question], *, rows: int, data: DataConfig, tokenizer: Tokenizer
) -> Prompts:
    """Right-padded prompts; rows beyond the questions are fillers with id -1 (numpy arrays)."""
    prompts = [prompt_tokens(q.text, data.prompt_template, tokenizer) for q in questions]
    width = _prompt_width(max(map(len, prompts)), data.max_prompt_tokens)
    tokens = np.zeros((rows, width), np.int32)
    lengths, ids = np.ones(rows, np.int32), np.full(rows, -1, np.int32)
    for row, (question, prompt) in enumerate(zip(questions, prompts, strict=True)):
        tokens[row, : len(prompt)] = prompt
        lengths[row], ids[row] = len(prompt), question.id
    return Prompts(tokens, lengths, ids)  # type: ignore[arg-type]  # numpy until it is moved


def _batches(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    for start in range(0, len(questions), size):
        yield questions[start : start + size]


def rollout(
    params: Params,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    step: int,
    num_samples: int,
    temperature: float,
    purpose: Purpose,
    questions_per_batch: int,
) -> Rollout:
    """Sample `num_samples` outputs per question and verify them; temperature 0 is greedy.

    While a batch is decoded on the device the one before it is turned to text and verified.
    """
    started = time.perf_counter()
    mesh = sampling.mesh
    divisor = batch_size_divisor(mesh)
    rows = -(-questions_per_batch // divisor) * divisor
    everywhere = replicated(mesh)
    scalars = jax.device_put(
        (
            run_key(seed=sampling.seed, purpose=purpose),
            np.int32(step),
            np.float32(temperature or 1.0),
        ),
        everywhere,
    )
    drafts: list[dict[str, Any]] = []
    entropies: list[float] = []
    futures = []
    seconds: list[float] = []

    def collect(batch: Sequence[Question], completions: Completions) -> None:
        host = jax.device_get(completions)
        new = list(_drafts(batch, host, sampling.tokenizer, step, entropies))
        answers = {question.id: question.answer for question in batch}
        items = [Item(answers[d["question_id"]], d["text"], d["finished"]) for d in new]
        submitted = time.perf_counter()
        future = sampling.verifier.submit(items)
        future.add_done_callback(lambda _: seconds.append(time.perf_counter() - submitted))
        futures.append(future)
        drafts.extend(new)

    running: tuple[Sequence[Question], Completions] | None = None
    for batch in _batches(questions, questions_per_batch):
        prompts = make_prompts(batch, rows=rows, data=sampling.data, tokenizer=sampling.tokenizer)
        completions = sample(
            params,
            jax.device_put(prompts, batch_sharding(mesh)),
            *scalars,
            config=sampling.model,
            num_samples=num_samples,
            max_new_tokens=sampling.data.max_completion_tokens,
            eos_id=sampling.tokenizer.eos_id,
            greedy=temperature == 0,
        )
        if running is not None:
            collect(*running)
        running = (batch, completions)
    if running is not None:
        collect(*running)
    sampled = time.perf_counter()
    judgements = [judgement for future in futures for judgement in future.result()]
    waited = time.perf_counter() - sampled
    return Rollout(
        samples=[
            Sample(**draft, verdict=judgement.verdict, reason=judgement.reason)
            for draft, judgement in zip(drafts, judgements, strict=True)
        ],
        entropies=np.asarray(entropies),
        seconds_sampling=sampled - started,
        seconds_verifying=waited,
        seconds_verifying_hidden=max(sum(seconds) - waited, 0.0),
    )


def _drafts(
    batch: Sequence[Question],
    completions: Completions,
    tokenizer: Tokenizer,
    step: int,
    entropies: list[float],
) -> Iterator[dict[str, Any]]:
    """The fields of each Sample but for its verdict; appends each output's mean entropy."""
    for row, question in enumerate(batch):
        for index in range(completions.lengths.shape[1]):
            length = int(completions.lengths[row, index])
            finished = bool(completions.finished[row, index])
            tokens = completions.tokens[row, index, :length].tolist()
            entropies.append(float(completions.entropies[row, index, :length].mean()))
            yield {
                "question_id": question.id,
                "sample_index": index,
                "step": step,
                "text": tokenizer.decode(tokens[:-1] if finished else tokens),
                "tokens": tuple(tokens),
                "log_probs": tuple(completions.log_probs[row, index, :length].tolist()),
                "finished": finished,
            }
