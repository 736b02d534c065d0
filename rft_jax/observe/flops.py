"""Matrix products and traffic that a transformer cannot avoid, counted from its shape.

Only floating-point operations of matrix products count, and bytes of weights and of keys and
values. The letters are those of rft_jax/batches.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

BYTES = {"float32": 4, "bfloat16": 2}
"""Of one weight or activation, by its type."""


@runtime_checkable
class Shape(Protocol):
    """A decoder: heads share keys and values in groups, and its MLP is gated."""

    @property
    def layers(self) -> int:
        """L."""

    @property
    def d_model(self) -> int:
        """D."""

    @property
    def heads(self) -> int:
        """N."""

    @property
    def kv_heads(self) -> int:
        """K."""

    @property
    def head_dim(self) -> int:
        """H."""

    @property
    def mlp(self) -> int:
        """F."""

    @property
    def vocab(self) -> int:
        """V."""


class Cost(NamedTuple):
    """flops: floating-point operations of matrix products; bytes: moved to and from memory."""

    flops: float
    bytes: float

    def __add__(self, other: object) -> Cost:
        """Both, one after the other."""
        assert isinstance(other, Cost)
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Rates:
    """Of a machine: flops: matrix products, FLOP/s; bytes: to and from memory, bytes/s."""

    flops: float
    bytes: float

    def seconds(self, cost: Cost) -> float:
        """The least time for `cost` when products and traffic overlap entirely."""
        return max(cost.flops / self.flops, cost.bytes / self.bytes)

    def bound(self, cost: Cost) -> str:
        """Which of the two that is: `matrix` or `bandwidth`."""
        return "matrix" if cost.flops / self.flops >= cost.bytes / self.bytes else "bandwidth"


def body_weights(shape: Shape) -> int:
    """Weights in the matrices of all blocks: L (2 D N H + 2 D K H + 3 D F)."""
    attention = 2 * shape.d_model * (shape.heads + shape.kv_heads) * shape.head_dim
    return shape.layers * (attention + 3 * shape.d_model * shape.mlp)


def head_weights(shape: Shape) -> int:
    """Weights of the tied embedding: D V."""
    return shape.d_model * shape.vocab


def weights(shape: Shape) -> int:
    """All matrices, each once."""
    return body_weights(shape) + head_weights(shape)


def kv_numbers(shape: Shape) -> int:
    """Numbers that the cache holds of one token: 2 L K H."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim


def attention_flops(shape: Shape, positions: float) -> float:
    """Products of queries with keys and of weights with values, summed over `positions` seen."""
    return 4.0 * shape.layers * shape.heads * shape.head_dim * positions


def token_flops(shape: Shape, seen: float, *, head: bool = True) -> float:
    """One token's forward pass that sees `seen` positions, itself included."""
    matrices = body_weights(shape) + (head_weights(shape) if head else 0)
    return 2.0 * matrices + attention_flops(shape, seen)
