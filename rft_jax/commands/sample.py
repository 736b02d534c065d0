"""`rft-jax sample`: outputs of a policy, one row each, in a file that `rft-jax verify` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rft_jax.checkpoint.policy import Policy
from rft_jax.checkpoint.start import to_sample_from
from rft_jax.commands.ask import Asked
from rft_jax.commands.options import Drawing
from rft_jax.distributed.mesh import make_mesh
from rft_jax.io.paths import check_new, new_file
from rft_jax.keys import Purpose
from rft_jax.observe.progress import Progress
from rft_jax.rollout.engine import Draft, Sampling, blocks, output_row, sample_outputs, showing
from rft_jax.types import Params, Question


class Sampled(NamedTuple):
    """What was written."""

    outputs: int
    tokens: int
    truncated: int


def sample(policy: Policy, asked: Asked, drawing: Drawing, out: Path) -> Sampled:
    """Sample and write `out`, in order of question and sample, whole or not at all.

    Raises UserError for a file that cannot be written or exists.
    """
    total = tokens = truncated = 0
    check_new(out)
    with new_file(out) as file:
        for question, draft in outputs(policy, asked, drawing):
            row = output_row(question, draft, asked.data, asked.tokenizer)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            total += 1
            tokens += len(draft.tokens)
            truncated += not draft.finished
    return Sampled(total, tokens, truncated)


def outputs(
    policy: Policy, asked: Asked, drawing: Drawing, params: Params | None = None
) -> Iterator[tuple[Question, Draft]]:
    """Outputs with their questions, in order of question and sample.

    The random numbers are those of an evaluation: they depend on the seed, the question's id and
    the sample's index. params: of the policy, where they are loaded already.
    """
    samples, temperature = drawing.samples_per_question, 0.0
    if not drawing.greedy:
        own = policy.config.evaluation.temperature if policy.config else 1.0
        temperature = drawing.temperature or own
    mesh = make_mesh(asked.mesh)
    sampling = Sampling(policy.model, asked.data, mesh, asked.tokenizer, None, asked.seed)
    params = to_sample_from(policy, mesh) if params is None else params
    total = len(asked.questions) * samples
    with Progress(total, 0, f"sample {policy.name}", unit="output") as progress:
        on_part = showing(progress)
        for block in blocks(asked.questions, asked.questions_per_batch):
            drafts: dict[int, Draft] = {}
            for part in sample_outputs(
                params,
                block.questions,
                sampling,
                step=0,
                num_samples=samples,
                temperature=temperature,
                purpose=Purpose.EVALUATION,
                questions_per_batch=block.multiple,
                num_slots=asked.questions_per_batch * samples,
            ):
                drafts |= part.drafts
                on_part(part)
            for number in range(len(drafts)):
                yield block.questions[number // samples], drafts[number]
