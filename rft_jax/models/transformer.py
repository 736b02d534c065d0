"""The policy: a decoder transformer of the Llama shape as pure functions over a parameter pytree.

Layers are Flax NNX modules, split once; outside this file a policy is a nested dict of arrays.
Training, prefill and decoding go through the same `Block`, which differ only in how they attend
(one forward path), so that the sampler's log-probs are the trainer's.

Features come first, [D, ...tokens], and a weight stands left of what it acts on, [out, in], as in
W x: a product with few tokens then streams the weights as they lie (on CPU up to twice as fast as
x W, whose operand is first packed anew at every step).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from rft_jax.batches import Params, Prompts
from rft_jax.config import ModelConfig
from rft_jax.models import kernels
from rft_jax.models.attention import (
    KeyValues,
    Rotation,
    at_least_float32,
    decode_attention,
    rotate,
    rotation,
    write_column,
)
from rft_jax.models.axes import AXES
from rft_jax.models.packed_attention import RESULTS, packed_attention
from rft_jax.parallel.mesh import constrain

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
"""(queries, keys, values) -> (mixed values shaped like queries, what the caller keeps)."""


def linear(
    weight: Float[Array, "..."], x: Float[Array, "..."], *, inputs: int = 1
) -> Float[Array, "..."]:
    """W x over the last `inputs` axes of the weight and the first of x, in the type of x.

    One plain matrix product whatever the axes: XLA's CPU backend may transpose a weight anew at
    every step when it contracts two axes.
    """
    out, tokens = weight.shape[: weight.ndim - inputs], x.shape[inputs:]
    width = math.prod(x.shape[:inputs])
    product = weight.astype(x.dtype).reshape(-1, width) @ x.reshape(width, -1)
    return product.reshape(*out, *tokens)


def _normal(key: Key[Array, ""], shape: tuple[int, ...], fan_in: int) -> Float[Array, "..."]:
    return jax.random.normal(key, shape, jnp.float32) / math.sqrt(fan_in)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale (arXiv 1910.07467, eq. 4), the mean square in at least float32."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "D ..."]) -> Float[Array, "D ..."]:
        wide = x.astype(at_least_float32(x.dtype))
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=0, keepdims=True) + self.eps)
        scale = self.scale[...].reshape((-1,) + (1,) * (x.ndim - 1))
        return (normed * scale).astype(x.dtype)


class Attention(nnx.Module):
    """Projections, rotary positions and grouped-query attention (arXiv 2305.13245)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d, n, k, h = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        self.query = nnx.Param(_normal(rngs.params(), (n, h, d), d))
        self.key = nnx.Param(_normal(rngs.params(), (k, h, d), d))
        self.value = nnx.Param(_normal(rngs.params(), (k, h, d), d))
        # Residual branches start small: their sum over 2 L of them keeps the stream's variance.
        self.output = nnx.Param(_normal(rngs.params(), (d, n, h), n * h * 2 * config.num_layers))

    def __call__(
        self, x: Float[Array, "D ..."], rotation: Rotation, attend: Attend
    ) -> tuple[Float[Array, "D ..."], Any]:
        queries, keys = linear(self.query[...], x), linear(self.key[...], x)
        values = linear(self.value[...], x)
        mixed, kept = attend(rotate(queries, rotation), rotate(keys, rotation), values)
        return linear(self.output[...], mixed, inputs=2), kept


class MLP(nnx.Module):
    """SwiGLU (arXiv 2002.05202, eq. 6)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d, f = config.d_model, config.mlp_dim
        self.gate = nnx.Param(_normal(rngs.params(), (f, d), d))
        self.up = nnx.Param(_normal(rngs.params(), (f, d), d))
        self.down = nnx.Param(_normal(rngs.params(), (d, f), f * 2 * config.num_layers))

    def __call__(self, x: Float[Array, "D ..."]) -> Float[Array, "D ..."]:
        gate = jax.nn.silu(linear(self.gate[...], x))
        return linear(self.down[...], gate * linear(self.up[...], x))


class Block(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = MLP(config, rngs)

    def __call__(
        self, x: Float[Array, "D ..."], rotation: Rotation, attend: Attend
    ) -> tuple[Float[Array, "D ..."], Any]:
        with jax.named_scope("attention"):
            mixed, kept = self.attention(self.attention_norm(x), rotation, attend)
            x = x + mixed
        with jax.named_scope("mlp"):
            return x + self.mlp(self.mlp_norm(x)), kept


@functools.cache
def _block_graph(config: ModelConfig) -> Any:
    """The static half of a block; the other half is the `blocks` subtree of the parameters."""
    return nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(params=0))))[0]


def _block(config: ModelConfig, params: Params) -> Block:
    return nnx.merge(_block_graph(config), params)


def init(key: Key[Array, ""], *, config: ModelConfig, vocab_size: int) -> Params:
    """Float32 parameters; the leaves under `blocks` carry a leading layer axis L."""
    embedding_key, unembedding_key, blocks_key = jax.random.split(key, 3)

    def one_block(block_key: Key[Array, ""]) -> Params:
        block = Block(config, nnx.Rngs(params=block_key))
        return nnx.to_pure_dict(nnx.state(block, nnx.Param))

    d = config.d_model
    params = {
        "embedding": _normal(embedding_key, (vocab_size, d), d),
        "blocks": jax.vmap(one_block)(jax.random.split(blocks_key, config.num_layers)),
        "final_norm": {"scale": jnp.ones((d,), jnp.float32)},
    }
    if not config.tie_embeddings:
        params["unembedding"] = _normal(unembedding_key, (vocab_size, d), d)
    return params


def abstract_params(*, config: ModelConfig, vocab_size: int) -> Params:
    """Shapes and types of `init`'s result, without allocating it."""
    make = functools.partial(init, config=config, vocab_size=vocab_size)
    return jax.eval_shape(make, jax.random.key(0))


def _embed(params: Params, config: ModelConfig, tokens: Int[Array, "..."]) -> Array:
    return jnp.moveaxis(params["embedding"][tokens].astype(config.compute_dtype), -1, 0)


def _rotation(config: ModelConfig, positions: Int[Array, "..."]) -> Rotation:
    dtype = at_least_float32(config.compute_dtype)
    return rotation(positions, width=config.head_dim, theta=config.rope_theta, dtype=dtype)


def rotation_table(config: ModelConfig, num_positions: int) -> Rotation:
    """The rotations of positions 0, 1, ...: made once, where a loop would make them at each step
    and, as XLA fuses them into what they feed, in each layer."""
    return _rotation(config, jnp.arange(num_positions))


def _final_norm(params: Params, config: ModelConfig, x: Float[Array, "D ..."]) -> Array:
    norm = RMSNorm(config.d_model, config.norm_eps)
    norm.scale = nnx.Param(params["final_norm"]["scale"])
    return norm(x)


def logits(
    params: Params, hidden: Float[Array, "D ..."], *, config: ModelConfig
) -> Float[Array, "V ..."]:
    """Unnormalised log-probabilities of the next token, in at least float32."""
    table = params["embedding" if config.tie_embeddings else "unembedding"].astype(hidden.dtype)
    dtype = at_least_float32(hidden.dtype)
    return jnp.einsum("vd,d...->v...", table, hidden, preferred_element_type=dtype)


def hidden_states(
    params: Params,
    tokens: Int[Array, "R S"],
    positions: Int[Array, "R S"],
    segments: Int[Array, "R S"],
    *,
    config: ModelConfig,
) -> Float[Array, "D R S"]:
    """Final hidden states of packed rows: what `logits` turns into predictions of the next token.

    positions restart at 0 in each segment; segments are numbered from 1, 0 is padding.
    """
    angles = _rotation(config, positions)
    attention = kernels.choose(config, tokens.shape[1], jax.default_backend())

    def attend(queries: Array, keys: Array, values: Array) -> tuple[Array, None]:
        return attention(queries, keys, values, segments), None

    def layer(x: Array, block: Params) -> tuple[Array, None]:
        x, _ = _block(config, in_use(block, config, "blocks"))(x, angles, attend)
        return constrain(x, None, "rows", None), None

    layer = jax.checkpoint(layer, prevent_cse=False, policy=_kept(config))
    x = constrain(_embed(params, config, tokens), None, "rows", None)
    x, _ = jax.lax.scan(layer, x, params["blocks"])
    return _final_norm(params, config, x)


def in_use(params: Params, config: ModelConfig, *path: str) -> Params:
    """Parameters at `path` (of one block, if that is `blocks`) as products read them: in the
    compute type, and whole along the axis that FSDP splits for as long as they are at work.

    Left to itself XLA's partitioner splits activations like the weights, and sums products instead.
    """

    def one(where: tuple[Any, ...], leaf: Array) -> Array:
        axes = AXES[*path, *(part.key for part in where)]
        if axes[-1] is None and leaf.ndim == 1:
            return leaf  # scales of norms
        names = (None if axis == "embed" else axis for axis in axes if axis != "layer")
        return constrain(leaf.astype(config.compute_dtype), *names)

    return jax.tree_util.tree_map_with_path(one, params)


def _kept(config: ModelConfig) -> Any:
    """What a block keeps for its backward pass (model.remat); norms, rotations and the gate's
    activation cost less to make anew than to keep, and are not kept at all."""
    policies = jax.checkpoint_policies
    products = policies.dots_with_no_batch_dims_saveable
    return {
        "none": policies.save_from_both_policies(products, policies.save_only_these_names(RESULTS)),
        "dots": products,
        "full": policies.nothing_saveable,
    }[config.remat]


class Cache(NamedTuple):
    """What decoding reads, per layer: the prompts' keys and values and those of the samples' own
    tokens. prompts: empty when each sample's prompt stands in front of its own tokens."""

    prompts: tuple[KeyValues, ...]
    own: tuple[KeyValues, ...]


def unstack(params: Params) -> Params:
    """The parameters with a tuple of per-layer dicts as `blocks`: what prefill and decode read.

    They are unrolled over layers, as a scan would copy every cache.
    """
    blocks = params["blocks"]
    count = jax.tree.leaves(blocks)[0].shape[0]
    layers = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(count))
    return params | {"blocks": layers}


def prefill(
    params: Params, prompts: Prompts, *, config: ModelConfig
) -> tuple[Float[Array, "D Q"], tuple[KeyValues, ...]]:
    """Run each prompt once; return the hidden state after its last token, and its cache.

    params: unstacked.
    """
    width = prompts.tokens.shape[1]
    segments = (jnp.arange(width)[None, :] < prompts.lengths[:, None]).astype(jnp.int32)
    angles = _rotation(config, jnp.broadcast_to(jnp.arange(width)[None, :], prompts.tokens.shape))

    def attend(queries: Array, keys: Array, values: Array) -> tuple[Array, KeyValues]:
        kept = KeyValues(keys.transpose(2, 0, 1, 3), values.transpose(2, 0, 3, 1))
        return packed_attention(queries, keys, values, segments), kept

    x = _embed(params, config, prompts.tokens)
    caches = []
    for block in params["blocks"]:
        x, kept = _block(config, block)(x, angles, attend)
        caches.append(kept)
    last = jnp.maximum(prompts.lengths - 1, 0)
    hidden = jnp.take_along_axis(x, last[None, :, None], axis=2)[..., 0]
    return _final_norm(params, config, hidden), tuple(caches)


def decode(
    params: Params,
    tokens: Int[Array, "B"],
    positions: Int[Array, "B"],
    cache: Cache,
    column: Int[Array, ""],
    on_prompt: Bool[Array, "B P"] | None,
    on_own: Bool[Array, "B T"],
    table: Rotation,
    *,
    config: ModelConfig,
) -> tuple[Float[Array, "D B"], Cache]:
    """Run one sampled token per sample; its keys and values go to `column` of its own cache.

    params: unstacked; positions: of the tokens, the prompt counted; on_prompt, on_own: what each
    sample sees of its row's prompts (None where the cache has none) and of its own columns; table:
    `rotation_table`. Returns the hidden states after the tokens, and the cache that holds them.
    """
    x = _embed(params, config, tokens)
    angles = Rotation(table.cos[:, positions], table.sin[:, positions])
    written = []
    prompts = cache.prompts or (None,) * config.num_layers
    for block, prompt, own in zip(params["blocks"], prompts, cache.own, strict=True):

        def attend(
            queries: Array,
            keys: Array,
            values: Array,
            prompt: KeyValues | None = prompt,
            own: KeyValues = own,
        ) -> tuple[Array, KeyValues]:
            now = write_column(own, keys, values, column)
            before = () if prompt is None or on_prompt is None else ((prompt, on_prompt),)
            return decode_attention(queries, (*before, (now, on_own))), now

        x, now = _block(config, block)(x, angles, attend)
        written.append(now)
    return _final_norm(params, config, x), cache._replace(own=tuple(written))
