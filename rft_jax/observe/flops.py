"""Matrix products and memory traffic that a decoder cannot avoid, counted from its shape and from
the lengths it works on.

FLOPs are those of matrix products; bytes are those of weights and of keys and values, in the
compute type. Padding, recomputation, norms, softmax, rotations and the optimizer's arithmetic count
as nothing. Shape letters are those of rft_jax/types.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rft_jax.config import ModelConfig

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}
"""Of one weight or activation, by its type."""


class Speeds(NamedTuple):
    """Of one device. flops: FLOP/s of products in the compute type; bandwidth: bytes/s of its
    memory; links: bytes/s that reach it from the devices that share its batch's parameters; tensor:
    the same from those that share its products; round: seconds that an exchange of these takes at
    least."""

    flops: float
    bandwidth: float
    links: float = math.inf
    tensor: float = math.inf
    round: float = 0.0


class Cost(NamedTuple):
    """Work of one device, or of all. flops: of matrix products; bytes: moved to and from memory;
    links: bytes from other devices that can come beside both; tensor: bytes of exchanges that the
    next product waits for; rounds: how many these are."""

    flops: float
    bytes: float
    links: float = 0.0
    tensor: float = 0.0
    rounds: float = 0.0

    def times(self, count: float) -> Cost:
        """`count` times it."""
        return Cost(*(count * part for part in self))

    def __add__(self, other: object) -> Cost:
        """Both, one after the other."""
        assert isinstance(other, Cost)
        return Cost(*map(sum, zip(self, other, strict=True)))

    def by_part(self, at: Speeds) -> dict[str, float]:
        """Seconds of each by itself; exchanges that are waited for come last."""
        return {
            "products": self.flops / at.flops,
            "memory": self.bytes / at.bandwidth,
            "links": self.links / at.links,
            "tensor exchange": self.tensor / at.tensor + self.rounds * at.round,
        }

    def seconds(self, at: Speeds) -> float:
        """The least time, when products, memory and links are at work together."""
        *together, waited = self.by_part(at).values()
        return max(together) + waited

    def bound(self, at: Speeds) -> str:
        """Which part takes longest."""
        parts = self.by_part(at)
        return max(parts, key=lambda name: parts[name])


class Model(NamedTuple):
    """A decoder with grouped heads and a gated MLP. vocab: rows of the embedding, V."""

    config: ModelConfig
    vocab: int

    @property
    def body(self) -> int:
        """Weights in the matrices of all blocks: L (2 D N H + 2 D K H + 3 D F)."""
        c = self.config
        attention = 2 * c.d_model * (c.num_heads + c.num_kv_heads) * c.head_dim
        return c.num_layers * (attention + 3 * c.d_model * c.mlp_dim)

    @property
    def head(self) -> int:
        """Weights of the output projection: D V. An embedding of its own is looked up, not read."""
        return self.config.d_model * self.vocab

    @property
    def weights(self) -> int:
        """All matrices, each once."""
        return self.body + self.head

    @property
    def adapters(self) -> int:
        """Weights in the adapters of all blocks."""
        c = self.config
        heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        out = {"query": heads, "key": kv_heads, "value": kv_heads, "output": heads}
        widths = [c.d_model + out.get(target, c.mlp_dim) for target in c.lora_targets]
        return c.num_layers * c.lora_rank * sum(widths)

    @property
    def kv_numbers(self) -> int:
        """Numbers that the cache holds of one token: 2 L K H."""
        return 2 * self.config.num_layers * self.config.num_kv_heads * self.config.head_dim

    @property
    def width(self) -> int:
        """Bytes of a number in the compute type."""
        return BYTES[self.config.compute_dtype]

    def attention(self, positions: float) -> float:
        """FLOPs of queries with keys and of scores with values, over `positions` seen in all."""
        c = self.config
        return 4.0 * c.num_layers * c.num_heads * c.head_dim * positions

    def token(self, positions: float) -> float:
        """FLOPs of one token's forward pass, logits included, that sees `seen` positions."""
        return 2.0 * self.weights + self.attention(positions)

    def seen(self, lengths: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Positions that the tokens of a sequence see together: each itself and those before it, or
        as far as the window reaches; the mean over layers."""
        whole, window = lengths * (lengths + 1) / 2, self.config.sliding_window
        inside = np.minimum(lengths, window)
        nearby = inside * (inside + 1) / 2 + (lengths - inside) * window
        layers = range(self.config.num_layers)
        share = np.mean([self.config.sees_all(layer) for layer in layers])
        return np.asarray(share * whole + (1 - share) * nearby)


def prefill(model: Model, prompts: Int[np.ndarray, "Q"]) -> Cost:
    """Every prompt once, with the logits after its last token; the weights are read once.

    Args:
        prompts: tokens of each prompt.
    """
    tokens = int(prompts.sum())
    flops = 2.0 * (model.body * tokens + model.head * len(prompts))
    flops += model.attention(float(model.seen(prompts).sum()))
    return Cost(flops, float(model.width) * (model.weights + tokens * model.kv_numbers))


def decode(
    model: Model, prompts: Int[np.ndarray, "Q"], outputs: Int[np.ndarray, "Q G"], steps: int
) -> Cost:
    """Outputs after their prefill. The first token comes from the prefill, and the last one is not
    run through the model. Read are the weights in every step, an output's own keys and values, and
    those of a prompt once a step for all outputs of its question; new ones are written.

    Args:
        prompts: tokens of each prompt.
        outputs: tokens of each output.
        steps: of the decode loop, summed over shards of the batch.
    """
    ran = np.maximum(outputs - 1, 0)
    total, most = int(ran.sum()), ran.max(axis=1, initial=0)
    sees = model.seen(prompts[:, None] + ran) - model.seen(prompts)[:, None]
    flops = 2.0 * model.weights * total + model.attention(float(sees.sum()))
    own = model.seen(ran).sum() + total
    shared = model.seen(prompts + most) - model.seen(prompts) - model.seen(most)
    numbers = model.kv_numbers * float(own + shared.sum()) + model.weights * steps
    return Cost(flops, model.width * numbers)


def update(
    model: Model,
    inputs: Int[np.ndarray, "B"],
    targets: Int[np.ndarray, "B"],
    *,
    with_reference: bool = False,
) -> Cost:
    """Forward and backward pass, and AdamW on float32 masters. The backward pass has twice the
    products of the forward pass; under adapters it makes gradients of activations, and of weights
    for the adapters only. Activations are not counted in bytes: they may stay in a cache.

    Args:
        inputs: tokens that each sequence runs through the model.
        targets: tokens of each sequence whose logits are needed.
        with_reference: whether the objective has a KL term, with one more forward pass.
    """
    tokens = int(inputs.sum())
    attention = model.attention(float(model.seen(inputs).sum()))
    adapters = 2.0 * model.adapters * tokens
    frozen = 2.0 * (model.body * tokens + model.head * int(targets.sum()))
    forward = frozen + adapters + attention
    backward = (1 if model.config.lora_rank else 2) * frozen + 2 * (adapters + attention)
    # The weights in each pass; the gradient, parameters and two moments, each read and written.
    trained = model.adapters if model.config.lora_rank else model.weights
    moved = (2.0 + with_reference) * model.width * model.weights + 4 * (2 + 6) * trained
    return Cost(forward + backward + with_reference * forward, moved)
