"""The policy: a decoder transformer of the Llama shape as pure functions over a parameter pytree.

Layers are Flax NNX modules, split once; outside this file a policy is a nested dict of arrays.
Training, prefill and decoding go through the same `Block`, which differ only in how they attend
(one forward path), so that the sampler's log-probs are the trainer's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from rft_jax.batches import Params, Prompts
from rft_jax.config import ModelConfig
from rft_jax.models.attention import (
    CompletionCache,
    PromptCache,
    at_least_float32,
    decode_attention,
    packed_attention,
    rotate,
    write_completion,
)

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
"""(queries, keys, values) -> (mixed values shaped like queries, what the caller keeps)."""


def _normal(key: Key[Array, ""], shape: tuple[int, ...], fan_in: int) -> Float[Array, "..."]:
    return jax.random.normal(key, shape, jnp.float32) / math.sqrt(fan_in)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale (arXiv 1910.07467, eq. 4), the mean square in at least float32."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        wide = x.astype(at_least_float32(x.dtype))
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return (normed * scale).astype(x.dtype)


class Attention(nnx.Module):
    """Projections, rotary positions and grouped-query attention (arXiv 2305.13245)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d, n, k, h = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        self.query = nnx.Param(_normal(rngs.params(), (d, n, h), d))
        self.key = nnx.Param(_normal(rngs.params(), (d, k, h), d))
        self.value = nnx.Param(_normal(rngs.params(), (d, k, h), d))
        # Residual branches start small: their sum over 2 L of them keeps the stream's variance.
        self.output = nnx.Param(_normal(rngs.params(), (n, h, d), n * h * 2 * config.num_layers))
        self.theta = config.rope_theta

    def __call__(
        self, x: Float[Array, "... D"], positions: Int[Array, "..."], attend: Attend
    ) -> tuple[Float[Array, "... D"], Any]:
        dtype = x.dtype
        queries = jnp.einsum("...d,dnh->...nh", x, self.query[...].astype(dtype))
        keys = jnp.einsum("...d,dkh->...kh", x, self.key[...].astype(dtype))
        values = jnp.einsum("...d,dkh->...kh", x, self.value[...].astype(dtype))
        queries = rotate(queries, positions, theta=self.theta)
        keys = rotate(keys, positions, theta=self.theta)
        mixed, kept = attend(queries, keys, values)
        return jnp.einsum("...nh,nhd->...d", mixed, self.output[...].astype(dtype)), kept


class MLP(nnx.Module):
    """SwiGLU (arXiv 2002.05202, eq. 6)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        d, f = config.d_model, config.mlp_dim
        self.gate = nnx.Param(_normal(rngs.params(), (d, f), d))
        self.up = nnx.Param(_normal(rngs.params(), (d, f), d))
        self.down = nnx.Param(_normal(rngs.params(), (f, d), f * 2 * config.num_layers))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        gate = jax.nn.silu(x @ self.gate[...].astype(x.dtype))
        return (gate * (x @ self.up[...].astype(x.dtype))) @ self.down[...].astype(x.dtype)


class Block(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = MLP(config, rngs)

    def __call__(
        self, x: Float[Array, "... D"], positions: Int[Array, "..."], attend: Attend
    ) -> tuple[Float[Array, "... D"], Any]:
        with jax.named_scope("attention"):
            mixed, kept = self.attention(self.attention_norm(x), positions, attend)
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
        params["unembedding"] = _normal(unembedding_key, (d, vocab_size), d)
    return params


def abstract_params(*, config: ModelConfig, vocab_size: int) -> Params:
    """Shapes and types of `init`'s result, without allocating it."""
    make = functools.partial(init, config=config, vocab_size=vocab_size)
    return jax.eval_shape(make, jax.random.key(0))


def _embed(params: Params, config: ModelConfig, tokens: Int[Array, "..."]) -> Array:
    return params["embedding"].astype(config.compute_dtype)[tokens]


def _final_norm(params: Params, config: ModelConfig, x: Float[Array, "... D"]) -> Array:
    norm = RMSNorm(config.d_model, config.norm_eps)
    norm.scale = nnx.Param(params["final_norm"]["scale"])
    return norm(x)


def logits(
    params: Params, hidden: Float[Array, "... D"], *, config: ModelConfig
) -> Float[Array, "... V"]:
    """Unnormalised log-probabilities of the next token, in at least float32."""
    table = params["embedding"].T if config.tie_embeddings else params["unembedding"]
    dtype = at_least_float32(hidden.dtype)
    return jnp.matmul(hidden, table.astype(hidden.dtype), preferred_element_type=dtype)


def hidden_states(
    params: Params,
    tokens: Int[Array, "R S"],
    positions: Int[Array, "R S"],
    segments: Int[Array, "R S"],
    *,
    config: ModelConfig,
) -> Float[Array, "R S D"]:
    """Final hidden states of packed rows: what `logits` turns into predictions of the next token.

    positions restart at 0 in each segment; segments are numbered from 1, 0 is padding.
    """

    def attend(queries: Array, keys: Array, values: Array) -> tuple[Array, None]:
        return packed_attention(queries, keys, values, segments), None

    def layer(x: Array, block: Params) -> tuple[Array, None]:
        return _block(config, block)(x, positions, attend)

    if config.remat == "full":
        layer = jax.checkpoint(layer, prevent_cse=False)
    elif config.remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
    x, _ = jax.lax.scan(layer, _embed(params, config, tokens), params["blocks"])
    return _final_norm(params, config, x)


class Cache(NamedTuple):
    """What decoding reads: per layer, the prompts' and the sampled tokens' keys and values."""

    prompts: tuple[PromptCache, ...]
    completions: tuple[CompletionCache, ...]
    prompt_lengths: Int[Array, "Q"]


def _layers(params: Params, config: ModelConfig) -> list[Params]:
    """One parameter dict per layer: decoding is unrolled, as a scan would copy every cache."""
    return [
        jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(config.num_layers)
    ]


def prefill(
    params: Params,
    prompts: Prompts,
    *,
    config: ModelConfig,
    num_samples: int,
    max_new_tokens: int,
) -> tuple[Float[Array, "Q D"], Cache]:
    """Run each prompt once; return the hidden state after its last token and the cache.

    The cache has room for `num_samples` outputs of `max_new_tokens` per prompt.
    """
    questions, width = prompts.tokens.shape
    segments = (jnp.arange(width)[None, :] < prompts.lengths[:, None]).astype(jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(width)[None, :], prompts.tokens.shape)

    def attend(queries: Array, keys: Array, values: Array) -> tuple[Array, PromptCache]:
        kept = PromptCache(keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3))
        return packed_attention(queries, keys, values, segments), kept

    x = _embed(params, config, prompts.tokens)
    caches = []
    for block in _layers(params, config):
        x, kept = _block(config, block)(x, positions, attend)
        caches.append(kept)
    shape = (questions, num_samples, config.num_kv_heads, max_new_tokens, config.head_dim)
    empty = jnp.zeros(shape, x.dtype)
    last = jnp.maximum(prompts.lengths - 1, 0)
    hidden = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
    return _final_norm(params, config, hidden), Cache(
        prompts=tuple(caches),
        completions=tuple(CompletionCache(empty, empty) for _ in caches),
        prompt_lengths=prompts.lengths,
    )


def decode(
    params: Params,
    tokens: Int[Array, "Q G"],
    position: Int[Array, ""],
    cache: Cache,
    *,
    config: ModelConfig,
) -> tuple[Float[Array, "Q G D"], Cache]:
    """Run one sampled token per sample, the `position`-th of its completion (from 0).

    Returns the hidden states after it and the cache that now holds it.
    """
    positions = jnp.broadcast_to(cache.prompt_lengths[:, None] + position, tokens.shape)
    x = _embed(params, config, tokens)
    written = []
    for block, prompt, completion in zip(
        _layers(params, config), cache.prompts, cache.completions, strict=True
    ):

        def attend(
            queries: Array,
            keys: Array,
            values: Array,
            prompt: PromptCache = prompt,
            completion: CompletionCache = completion,
        ) -> tuple[Array, CompletionCache]:
            own = write_completion(completion, keys, values, position)
            mixed = decode_attention(queries, prompt, own, cache.prompt_lengths, position)
            return mixed, own

        x, own = _block(config, block)(x, positions, attend)
        written.append(own)
    return _final_norm(params, config, x), cache._replace(completions=tuple(written))
