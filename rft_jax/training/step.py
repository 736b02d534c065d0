"""The host's side of an update: sequences packed and put on the devices; its facts as metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from rft_jax.config import Config
from rft_jax.distributed.mesh import batch_sharding, replicated
from rft_jax.distributed.shards import put
from rft_jax.errors import UserError
from rft_jax.training.objective import METHODS
from rft_jax.training.optimizer import schedule
from rft_jax.training.packing import TrainingSequence, num_microbatches, pack
from rft_jax.training.update import update
from rft_jax.types import PackedBatch, Params, TrainState

Facts = dict[str, float | None]


@dataclass(frozen=True)
class Updating:
    """What stays the same from one update of a run to the next. vocab_size: rows of the embedding;
    frozen: parameters under adapters; reference: pi_ref, None without a KL term; at: told where the
    work is (parallel/watch.py)."""

    config: Config
    mesh: Mesh
    optimizer: optax.GradientTransformation
    vocab_size: int
    frozen: Params
    reference: Params | None
    at: Callable[[str], None]


def packed(sequences: Sequence[TrainingSequence], config: Config) -> PackedBatch:
    """The sequences of a step in the shapes that all its updates have (numpy)."""
    shapes = config.update
    most = shapes.sequences_per_step
    if config.refill is not None:
        most = config.refill.accepted
    elif config.rollout is not None and not most:
        most = config.rollout.questions_per_step * config.rollout.samples_per_question
    longest = config.data.max_prompt_tokens + config.data.max_completion_tokens
    rows = {"row_length": shapes.row_length, "rows_per_microbatch": shapes.rows_per_microbatch}
    return pack(sequences, max_microbatches=num_microbatches(most, longest, **rows), **rows)


def make_update(
    state: TrainState,
    sequences: Sequence[TrainingSequence],
    updating: Updating,
    *,
    step: int,
    updates: int,
) -> tuple[TrainState, Facts]:
    """One update and its facts. step, updates: of the run, before this one.

    Takes the arrays of `state`. Raises UserError when the gradient is not finite.
    """
    config, mesh = updating.config, updating.mesh
    updating.at(f"update of step {step + 1}")
    shapes = config.update
    batch = packed(sequences, config)
    slots = int(batch.num_microbatches) * shapes.rows_per_microbatch * shapes.row_length
    filled = int((batch.segments > 0).sum())
    learning_rate = float(schedule(config.optimizer, config.steps)(np.int32(updates)))
    online = METHODS[config.method].source == "policy"
    temperature = config.rollout.temperature if online and config.rollout else 1.0
    by_rows, everywhere = batch_sharding(mesh, axis=1), replicated(mesh)
    where = jax.tree.map(lambda leaf: by_rows if leaf.ndim else everywhere, batch)
    state, metrics = update(
        state,
        updating.reference,
        put(batch, where),
        put(np.float32(temperature), everywhere),
        updating.frozen,
        config=config.model,
        optimizer=updating.optimizer,
        kl_coefficient=config.objective.kl_coefficient,
        chunk=max(1, shapes.logits_at_once // updating.vocab_size),
        mesh=mesh,
    )
    # Who waits for the devices of another process is further than one that has not begun.
    updating.at(f"result of the update of step {step + 1}")
    values = {name: float(value) for name, value in jax.device_get(metrics)._asdict().items()}
    if not math.isfinite(values["gradient_norm"]):
        raise UserError(
            f"step {step + 1}: the gradient's norm is {values['gradient_norm']}; nothing of "
            f"this step is saved. Lower optimizer.learning_rate ({config.optimizer.learning_rate}) "
            "and start again in another --workdir, or remove the newest checkpoints to go on from "
            "an earlier one."
        )
    facts: Facts = {
        "objective/value": values["value"],
        "optimizer/gradient_norm": values["gradient_norm"],
        "optimizer/learning_rate": learning_rate,
        "update/sequences": len(sequences),
        "update/padding_efficiency": filled / slots,
    }
    if config.objective.kl_coefficient:
        facts["objective/kl"] = values["kl"]
    if online:
        # Carried outputs have no log-probs of the current policy, and the maximum is of the batch.
        comparable = all(len(sequence.log_probs) for sequence in sequences)
        for name in ("mismatch_max", "mismatch_mean"):
            facts[f"policy/log_prob_{name}"] = values[name] if comparable else None
    return state, facts
