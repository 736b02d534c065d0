"""log pi(o_t | q, o_<t) of given outputs under a policy other than the one that sampled them.

What a KL in the reward and a coefficient of log pi_theta / pi_ref need: pi_ref once for each
output, pi_theta again before each update. A forward pass over packed rows, as the update makes it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from rft_jax.config import Config, ModelConfig
from rft_jax.distributed.mesh import batch_sharding, replicated
from rft_jax.distributed.shards import put
from rft_jax.models.adapters import join
from rft_jax.training.log_probs import target_log_probs
from rft_jax.training.objective import KL
from rft_jax.training.packing import TrainingSequence, pack_step, places, update_sizes
from rft_jax.types import Facts, PackedBatch, Params, Sample, Verdict

Score = Callable[[Sequence[TrainingSequence]], list[np.ndarray]]
"""Sequences -> log pi of each completion token, float32, under a policy."""


TokenScore = Callable[..., Array]
"""(params, micro-batch, temperature, config=, chunk=) -> a number for each slot, [R, S]."""


def token_log_probs(
    params: Params,
    batch: PackedBatch,
    temperature: Float[Array, ""],
    *,
    config: ModelConfig,
    chunk: int,
) -> Float[Array, "R S"]:
    """log pi of each target of a micro-batch, in nats."""
    rows = (batch.inputs, batch.targets, batch.positions, batch.segments)
    return target_log_probs(params, *rows, temperature, config=config, chunk=chunk)


@functools.partial(jax.jit, static_argnames=("of", "config", "chunk", "mesh"))
def packed_scores(
    params: Params,
    frozen: Params,
    batch: PackedBatch,
    temperature: Float[Array, ""],
    *,
    of: TokenScore,
    config: ModelConfig,
    chunk: int,
    mesh: Mesh,
) -> Float[Array, "M R S"]:
    """A number for every target of a batch, on every device; 0 in micro-batches not in use.

    Args:
        params: of the policy, as they are trained.
        frozen: the rest of it where those are adapters.
        batch: packed rows.
        temperature: of the policy.
        of: what scores a micro-batch.
        config: of the model.
        chunk: tokens whose logits exist at a time.
        mesh: what rows and parameters are spread over.
    """

    def score(index: Array, found: Array) -> Array:
        scores = of(
            join(frozen, params), microbatch(batch, index), temperature, config=config, chunk=chunk
        )
        return jax.lax.dynamic_update_index_in_dim(found, scores, index, 0)

    dtype = jnp.promote_types(jax.tree.leaves(params)[0].dtype, jnp.float32)
    start = jnp.zeros(batch.inputs.shape, dtype)
    start = jax.lax.with_sharding_constraint(start, batch_sharding(mesh, axis=1))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        found = jax.lax.fori_loop(0, batch.num_microbatches, score, start)
    return jax.lax.with_sharding_constraint(found, replicated(mesh))


def update_temperature(config: Config) -> float:
    """The temperature of the policy that an update trains: the one that outputs were sampled at, 1
    for demonstrations and pools."""
    online = config.row.source == "policy"
    return config.rollout.temperature if online and config.rollout else 1.0


def microbatch(batch: PackedBatch, index: Array) -> PackedBatch:
    """One micro-batch of a batch, its arrays [R, S]."""
    rows = batch._replace(num_microbatches=jnp.zeros(batch.inputs.shape[0]))
    one: PackedBatch = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), rows
    )
    return one


def score_sequences(
    params: Params,
    sequences: Sequence[TrainingSequence],
    config: Config,
    *,
    of: TokenScore = token_log_probs,
    frozen: Params,
    mesh: Mesh,
    vocab_size: int,
) -> list[np.ndarray]:
    """A number for each output token, log pi(o_t | q, o_<t) in nats unless `of` says otherwise; the
    same in every process.

    Args:
        params: of the policy, as they are trained.
        sequences: of any number; weights do not count.
        config: shapes are those of its updates, so that one program scores all.
        of: what scores a micro-batch.
        frozen: the rest of the policy where `params` are adapters.
        mesh: of the run.
        vocab_size: rows of the embedding.
    """
    sizes, found = update_sizes(config), list[np.ndarray]()
    by_rows, everywhere = batch_sharding(mesh, axis=1), replicated(mesh)
    for first in range(0, len(sequences), sizes.sequences):
        part = sequences[first : first + sizes.sequences]
        batch = pack_step(part, config)
        where = jax.tree.map(lambda leaf: by_rows if leaf.ndim else everywhere, batch)
        scored = packed_scores(
            params,
            frozen,
            put(batch, where),
            put(np.float32(update_temperature(config)), everywhere),
            of=of,
            config=config.model,
            chunk=max(1, config.update.logits_at_once // vocab_size),
            mesh=mesh,
        )
        rows = np.asarray(scored).reshape(-1, sizes.row_length)
        for one, (row, offset) in zip(part, places(part, sizes.row_length), strict=True):
            begin = offset + len(one.prompt) - 1
            # A view would keep the device's array.
            found.append(rows[row, begin : begin + len(one.completion)].copy())
    return found


def scored(
    samples: Sequence[Sample], prompt: Callable[[int], Sequence[int]], **scores: Score | None
) -> list[Sample]:
    """The samples, decided ones with a number for each of their tokens.

    Args:
        samples: decided ones whole.
        prompt: question id -> prompt tokens.
        scores: what gives the numbers, by the field of the sample; None leaves it as it is.
    """
    decided = [one for one in samples if one.verdict is not Verdict.UNDECIDED]
    sequences = [TrainingSequence(prompt(one.question_id), one.tokens, 0.0) for one in decided]
    for name, score in scores.items():
        if score is not None:
            found: Any = [{name: tuple(values.tolist())} for values in score(sequences)]
            decided = [replace(one, **new) for one, new in zip(decided, found, strict=True)]
    with_scores = iter(decided)
    return [one if one.verdict is Verdict.UNDECIDED else next(with_scores) for one in samples]


def token_kl(samples: Sequence[Sample], estimator: str) -> Float[np.ndarray, "B T"]:
    """Estimates of the KL to pi_ref at each token of B outputs, 0 after an output's end.

    Args:
        samples: with the log-probs of the policy that sampled and of pi_ref.
        estimator: k1, k2 or k3 (rft_jax/training/objective.py).
    """
    width = max((one.num_tokens for one in samples), default=0)
    found = np.zeros((2, len(samples), width))
    for row, one in enumerate(samples):
        found[0, row, : one.num_tokens] = one.log_probs
        found[1, row, : one.num_tokens] = one.reference
    return np.asarray(KL[estimator](jnp.asarray(found[0]), jnp.asarray(found[1])), np.float64)


def with_kl_in_reward(facts: Facts, samples: Sequence[Sample], config: Config) -> Facts:
    """Facts whose rewards are less objective.kl_coefficient times the output's KL to pi_ref."""
    objective = config.objective
    kl = objective.kl_coefficient * token_kl(samples, objective.kl_estimator)
    return facts._replace(rewards=facts.rewards - kl.sum(axis=1), penalties=kl)


def kl_of_some(
    samples: Sequence[Sample], prompt: Callable[[int], Sequence[int]], reference: Score, count: int
) -> dict[str, float]:
    """The KL of the policy that sampled to pi_ref per token (k3), on `count` decided outputs that
    are spread over the rollout, as a metric."""
    decided = [one for one in samples if one.verdict is not Verdict.UNDECIDED]
    some = decided[:: -(-len(decided) // count)] if decided else []
    if not some:
        return {}
    per_token = token_kl(scored(some, prompt, reference=reference), "k3")
    return {"policy/kl": float(per_token.sum() / sum(one.num_tokens for one in some))}


def mean_kl(samples: Sequence[Sample], config: Config) -> dict[str, Any]:
    """The KL to pi_ref per token, the mean over decided outputs, as a metric; nothing where it is
    not in the reward."""
    decided = [one for one in samples if one.verdict is not Verdict.UNDECIDED]
    if config.objective.kl_in != "reward" or not decided:
        return {}
    lengths = np.array([one.num_tokens for one in decided])
    kl = token_kl(decided, config.objective.kl_estimator).sum(axis=1) / lengths
    return {"objective/kl": float(kl.mean())}
