"""Device pytrees, and the one list of shape letters.

B samples, Q questions, G samples per question, P prompt length, T completion length, S positions,
L layers, N query heads, K key/value heads, H head width, D model width, F MLP width, V vocabulary;
M micro-batches of an update, R packed rows of a micro-batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int

Params = Any
"""A nested dict of float arrays: the parameters of a policy."""


class Prompts(NamedTuple):
    """Right-padded prompts of Q questions.

    lengths: real tokens of each row; ids: question ids, -1 for a row that only fills the shape.
    """

    tokens: Int[Array, "Q P"]
    lengths: Int[Array, "Q"]
    ids: Int[Array, "Q"]


class Completions(NamedTuple):
    """G outputs for each of Q prompts.

    tokens: completion tokens, EOS included, zero after `lengths`.
    log_probs: log-probability in nats of each token under the sampling distribution, zero after
        `lengths`; entropies: of that distribution, in nats, likewise.
    finished: whether the output ended with EOS.
    """

    tokens: Int[Array, "Q G T"]
    log_probs: Float[Array, "Q G T"]
    entropies: Float[Array, "Q G T"]
    lengths: Int[Array, "Q G"]
    finished: Bool[Array, "Q G"]


class PackedBatch(NamedTuple):
    """Sequences (prompt + output) packed into rows; slot s of a row predicts targets[s].

    segments: number of the sequence within its row from 1; 0 marks padding.
    weights: the objective is sum(weights * log_probs): GC(q, o, t) / |o| over the denominator at
        output tokens, 0 elsewhere.
    kl_weights: the same for the KL term; sampler_log_probs: what the sampler reported.
    num_microbatches: micro-batches in use; the rest of M is padding and is not computed.
    """

    inputs: Int[Array, "M R S"]
    targets: Int[Array, "M R S"]
    positions: Int[Array, "M R S"]
    segments: Int[Array, "M R S"]
    weights: Float[Array, "M R S"]
    kl_weights: Float[Array, "M R S"]
    sampler_log_probs: Float[Array, "M R S"]
    num_microbatches: Int[Array, ""]


class TrainState(NamedTuple):
    """What an update changes. step: updates made so far."""

    step: Int[Array, ""]
    params: Params
    optimizer: Any
