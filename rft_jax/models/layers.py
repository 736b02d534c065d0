"""The layers of a block as Flax NNX modules, split once; outside models/ nobody sees them.

A weight stands left of what it acts on, [out, in], as in W x. With model.lora_targets a matrix W
has adapters `W_a` and `W_b` beside it (rft_jax/models/adapters.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from rft_jax.config import ModelConfig
from rft_jax.models.rope import Rotation, at_least_float32, rotate
from rft_jax.types import Params

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
"""(queries, keys, values) -> (mixed values shaped like queries, what the caller keeps)."""


def linear(
    weight: Float[Array, "..."], x: Float[Array, "..."], *, inputs: int = 1
) -> Float[Array, "..."]:
    """W x in the type of x, as one plain matrix product: when two axes are contracted, XLA's CPU
    backend may transpose a weight at every step.

    Args:
        weight: [out..., in...].
        x: [in..., tokens...].
        inputs: axes that are summed over.
    """
    out, tokens = weight.shape[: weight.ndim - inputs], x.shape[inputs:]
    width = math.prod(x.shape[:inputs])
    product = weight.astype(x.dtype).reshape(-1, width) @ x.reshape(width, -1)
    return product.reshape(*out, *tokens)


def normal(key: Key[Array, ""], shape: tuple[int, ...], fan_in: int) -> Float[Array, "..."]:
    """Normal float32 numbers of standard deviation 1 / sqrt(fan_in)."""
    return jax.random.normal(key, shape, jnp.float32) / math.sqrt(fan_in)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale (arXiv 1910.07467, eq. 4), the mean square in at least float32."""

    def __init__(self, width: int, config: ModelConfig):
        start = jnp.zeros if config.norm_offset else jnp.ones
        self.scale = nnx.Param(start((width,), jnp.float32))
        self.eps, self.offset = config.norm_eps, float(config.norm_offset)

    def __call__(self, x: Float[Array, "..."], *, axis: int = 0) -> Float[Array, "..."]:
        wide = x.astype(at_least_float32(x.dtype))
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=axis, keepdims=True) + self.eps)
        scale = self.scale[...].reshape((-1,) + (1,) * (x.ndim - axis - 1))
        scale = scale + self.offset if self.offset else scale
        return (normed * scale.reshape((1,) * axis + scale.shape)).astype(x.dtype)


class _Adapted(nnx.Module):
    """A layer whose matrices may have adapters."""

    def add_adapters(
        self, names: tuple[str, ...], inputs: dict[str, int], config: ModelConfig, rngs: nnx.Rngs
    ) -> None:
        """Add A random and B zero, which change nothing at first (arXiv 2106.09685, 4.1).

        Args:
            names: matrices that may have adapters; config.lora_targets says which do.
            inputs: number of axes that a matrix acts on, where it is not one.
        """
        self.adapter_scale = config.lora_alpha / max(config.lora_rank, 1)
        for name in names:
            if name in config.lora_targets:
                shape, rank = getattr(self, name).shape, config.lora_rank
                cut = len(shape) - inputs.get(name, 1)
                first = normal(rngs.params(), (rank, *shape[cut:]), math.prod(shape[cut:]))
                setattr(self, f"{name}_a", nnx.Param(first))
                setattr(self, f"{name}_b", nnx.Param(jnp.zeros((*shape[:cut], rank), jnp.float32)))

    def apply(self, name: str, x: Float[Array, "..."], *, inputs: int = 1) -> Float[Array, "..."]:
        """W x, or W x + scale B A x."""
        plain = linear(getattr(self, name)[...], x, inputs=inputs)
        if not hasattr(self, f"{name}_a"):
            return plain
        first, second = getattr(self, f"{name}_a")[...], getattr(self, f"{name}_b")[...]
        return plain + self.adapter_scale * linear(second, linear(first, x, inputs=inputs))


class Attention(_Adapted):
    """Projections, rotary positions and grouped-query attention (arXiv 2305.13245)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d, n, k, h = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        self.query = nnx.Param(normal(rngs.params(), (n, h, d), d))
        self.key = nnx.Param(normal(rngs.params(), (k, h, d), d))
        self.value = nnx.Param(normal(rngs.params(), (k, h, d), d))
        # Residual branches start small: their sum over 2 L of them keeps the stream's variance.
        self.output = nnx.Param(normal(rngs.params(), (d, n, h), n * h * 2 * config.num_layers))
        if config.qkv_bias:
            self.query_bias = nnx.Param(jnp.zeros((n, h), jnp.float32))
            self.key_bias = nnx.Param(jnp.zeros((k, h), jnp.float32))
            self.value_bias = nnx.Param(jnp.zeros((k, h), jnp.float32))
        if config.qk_norm:
            self.query_norm = RMSNorm(h, config)
            self.key_norm = RMSNorm(h, config)
        self.add_adapters(("query", "key", "value", "output"), {"output": 2}, config, rngs)
        # Attention itself divides scores by the root of the width.
        self.query_scale = math.sqrt(h / (config.attention_scalar or h))

    def _project(self, name: str, x: Float[Array, "D ..."]) -> Float[Array, "_ H ..."]:
        y = self.apply(name, x)
        if not hasattr(self, f"{name}_bias"):
            return y
        bias = getattr(self, f"{name}_bias")[...].astype(y.dtype)
        return y + bias.reshape(*bias.shape, *(1,) * (y.ndim - 2))

    def __call__(
        self, x: Float[Array, "D ..."], rotation: Rotation, attend: Attend
    ) -> tuple[Float[Array, "D ..."], Any]:
        queries, keys = self._project("query", x), self._project("key", x)
        values = self._project("value", x)
        if hasattr(self, "query_norm"):
            queries, keys = self.query_norm(queries, axis=1), self.key_norm(keys, axis=1)
        queries = rotate(queries, rotation)
        if self.query_scale != 1:
            queries = queries * self.query_scale
        mixed, kept = attend(queries, rotate(keys, rotation), values)
        return self.apply("output", mixed, inputs=2), kept


class MLP(_Adapted):
    """A gated MLP: SwiGLU, or GEGLU with another activation (arXiv 2002.05202, eq. 6)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d, f = config.d_model, config.mlp_dim
        self.gate = nnx.Param(normal(rngs.params(), (f, d), d))
        self.up = nnx.Param(normal(rngs.params(), (f, d), d))
        self.down = nnx.Param(normal(rngs.params(), (d, f), f * 2 * config.num_layers))
        self.add_adapters(("gate", "up", "down"), {}, config, rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "D ..."]) -> Float[Array, "D ..."]:
        gate = ACTIVATIONS[self.activation](self.apply("gate", x))
        return self.apply("down", gate * self.apply("up", x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}
"""By the name in model.activation."""


class Block(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.d_model, config)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.d_model, config)
        self.mlp = MLP(config, rngs)
        if config.post_norms:
            self.attention_post_norm = RMSNorm(config.d_model, config)
            self.mlp_post_norm = RMSNorm(config.d_model, config)

    def __call__(
        self, x: Float[Array, "D ..."], rotation: Rotation, attend: Attend
    ) -> tuple[Float[Array, "D ..."], Any]:
        with jax.named_scope("attention"):
            mixed, kept = self.attention(self.attention_norm(x), rotation, attend)
            x = x + (self.attention_post_norm(mixed) if self._post_norms else mixed)
        with jax.named_scope("mlp"):
            mixed = self.mlp(self.mlp_norm(x))
            return x + (self.mlp_post_norm(mixed) if self._post_norms else mixed), kept

    @property
    def _post_norms(self) -> bool:
        return hasattr(self, "mlp_post_norm")


@functools.cache
def _block_graph(config: ModelConfig) -> Any:
    """The static half of a block; the other half is the `blocks` subtree of the parameters."""
    return nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(params=0))))[0]


def block_of(config: ModelConfig, params: Params) -> Block:
    """The block with the parameters of one layer."""
    return nnx.merge(_block_graph(config), params)


def init_block(key: Key[Array, ""], config: ModelConfig) -> Params:
    """Float32 parameters of one layer."""
    return nnx.to_pure_dict(nnx.state(Block(config, nnx.Rngs(params=key)), nnx.Param))
