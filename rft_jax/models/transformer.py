"""The policy: a decoder transformer as pure functions over a parameter pytree.

Training, prefill and decoding go through the same `Block` (rft_jax/models/layers.py) and differ
only in how they attend (one forward path), so that the sampler's log-probs are the trainer's.

Features come first, [D, ...tokens], and a weight stands left of what it acts on, [out, in], as in
W x: a product with few tokens then streams the weights as they lie (on CPU up to twice as fast as
x W, whose operand is packed again at every step).
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from rft_jax.config import ModelConfig
from rft_jax.distributed.mesh import constrain
from rft_jax.models import kernels
from rft_jax.models.attention import KeyValues, capped, decode_attention, write_column
from rft_jax.models.axes import AXES
from rft_jax.models.layers import RMSNorm, block_of, init_block, normal
from rft_jax.models.packed_attention import RESULTS, packed_attention
from rft_jax.models.rope import Rotation, at_least_float32, frequencies, rotation
from rft_jax.types import Params, Prompts


def init(key: Key[Array, ""], *, config: ModelConfig, vocab_size: int) -> Params:
    """Float32 parameters; the leaves under `blocks` carry a leading layer axis L."""
    embedding_key, unembedding_key, blocks_key = jax.random.split(key, 3)

    d = config.d_model
    one_block = functools.partial(init_block, config=config)
    params = {
        "embedding": normal(embedding_key, (vocab_size, d), d),
        "blocks": jax.vmap(one_block)(jax.random.split(blocks_key, config.num_layers)),
        "final_norm": {"scale": RMSNorm(d, config).scale[...]},
    }
    if not config.tie_embeddings:
        params["unembedding"] = normal(unembedding_key, (vocab_size, d), d)
    return params


def abstract_params(*, config: ModelConfig, vocab_size: int) -> Params:
    """Shapes and types of `init`'s result, without allocating it."""
    make = functools.partial(init, config=config, vocab_size=vocab_size)
    return jax.eval_shape(make, jax.random.key(0))


def cast(params: Params, dtype: str) -> Params:
    """Everything but the scales of norms in `dtype`. With the compute type no output changes by a
    bit: the forward pass reads matrices in it, and multiplies by scales in float32."""

    def one(path: tuple[Any, ...], leaf: Array) -> Array:
        return leaf if path[-1].key == "scale" else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(one, params)


def _embed(params: Params, config: ModelConfig, tokens: Int[Array, "..."]) -> Array:
    # Each device looks up its part of the width for the rows of its copy, and then only devices of
    # an fsdp axis exchange rows. Left to itself XLA's partitioner brings all rows to all devices.
    embedded = jnp.asarray(params["embedding"][tokens], config.compute_dtype)
    embedded = constrain(embedded, "rows_of_copy", *(None,) * (tokens.ndim - 1), "embed")
    if config.scale_embeddings:
        embedded = embedded * jnp.asarray(math.sqrt(config.d_model), config.compute_dtype)
    return jnp.moveaxis(embedded, -1, 0)


class Rotations(NamedTuple):
    """The rotations in layers that see everything, and in those with a sliding window."""

    everywhere: Rotation
    nearby: Rotation


def _rotations(config: ModelConfig, positions: Int[Array, "..."]) -> Rotations:
    dtype = at_least_float32(config.compute_dtype)
    everywhere = rotation(positions, frequencies(config), dtype=dtype)
    if not config.local_rope_theta:
        return Rotations(everywhere, everywhere)
    return Rotations(everywhere, rotation(positions, frequencies(config, local=True), dtype=dtype))


def rotation_table(config: ModelConfig, num_positions: int) -> Rotations:
    """The rotations of positions 0, 1, ...: computed once, where a loop would recompute them at
    each step and, as XLA fuses them into what they feed, in each layer."""
    return _rotations(config, jnp.arange(num_positions))


def _final_norm(params: Params, config: ModelConfig, x: Float[Array, "D ..."]) -> Array:
    norm = RMSNorm(config.d_model, config)
    norm.scale = nnx.Param(params["final_norm"]["scale"])
    return norm(x)


def logits(
    params: Params, hidden: Float[Array, "D ..."], *, config: ModelConfig
) -> Float[Array, "V ..."]:
    """Unnormalised log-probabilities of the next token, in at least float32.

    Args:
        params: the parameters; only the (un)embedding is read.
        hidden: final hidden states (`hidden_states`, `prefill`, `decode`).
        config: of the model.
    """
    table = params["embedding" if config.tie_embeddings else "unembedding"].astype(hidden.dtype)
    dtype = at_least_float32(hidden.dtype)
    scores = jnp.einsum("vd,d...->v...", table, hidden, preferred_element_type=dtype)
    return capped(scores, config.final_softcap)


def hidden_states(
    params: Params,
    tokens: Int[Array, "R S"],
    positions: Int[Array, "R S"],
    segments: Int[Array, "R S"],
    *,
    config: ModelConfig,
) -> Float[Array, "D R S"]:
    """Final hidden states of packed rows: what `logits` turns into predictions of the next token.

    Args:
        params: stacked, the leaves under `blocks` [L, ...].
        tokens: token ids.
        positions: restart at 0 in each segment.
        segments: number of the sequence of each slot, from 1; 0 for padding.
        config: of the model.
    """
    slots = tokens.shape[1]
    angles = _rotations(config, positions)
    kernel = kernels.choose(config, slots, jax.default_backend())

    def layer(x: Array, inputs: tuple[Params, Array | None]) -> tuple[Array, None]:
        block, sees_all = inputs
        window, turns = None, angles.everywhere
        if sees_all is not None:
            if config.sliding_window < slots:
                window = jnp.where(sees_all, slots, config.sliding_window)
            turns = jax.tree.map(functools.partial(jnp.where, sees_all), *angles)

        def attend(queries: Array, keys: Array, values: Array) -> tuple[Array, None]:
            if kernel in kernels.FLASH:
                return kernels.FLASH[kernel](queries, keys, values, segments), None
            softcap = config.attention_softcap
            return packed_attention(queries, keys, values, segments, window, softcap), None

        x, _ = block_of(config, in_use(block, config, "blocks"))(x, turns, attend)
        return constrain(x, None, "rows", None), None

    layer = jax.checkpoint(layer, prevent_cse=False, policy=_kept(config))
    x = constrain(_embed(params, config, tokens), None, "rows", None)
    x, _ = jax.lax.scan(layer, x, (params["blocks"], _sees_all(config)))
    return _final_norm(params, config, x)


def _sees_all(config: ModelConfig) -> Array | None:
    """Whether each layer sees everything, [L]; None where all do."""
    if not config.sliding_window:
        return None
    return jnp.asarray([config.sees_all(layer) for layer in range(config.num_layers)])


def in_use(params: Params, config: ModelConfig, *path: str) -> Params:
    """Parameters at `path` (of one block, if that is `blocks`) as products read them: in the
    compute type, and whole along the axis that FSDP splits while they are in use.

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
    activation cost less to recompute than to keep, and are not kept at all."""
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
    """Run each prompt once.

    Args:
        params: unstacked (`unstack`).
        prompts: right-padded, [Q, P].
        config: of the model.

    Returns: the final hidden state after each prompt's last token, and a cache per layer with R = Q
        rows and P positions.
    """
    width = prompts.tokens.shape[1]
    segments = (jnp.arange(width)[None, :] < prompts.lengths[:, None]).astype(jnp.int32)
    angles = _rotations(config, jnp.broadcast_to(jnp.arange(width)[None, :], prompts.tokens.shape))
    x = _embed(params, config, prompts.tokens)
    caches = []
    for number, block in enumerate(params["blocks"]):
        sees_all = config.sees_all(number)
        window = None if sees_all else jnp.int32(config.sliding_window)

        def attend(
            queries: Array, keys: Array, values: Array, window: Array | None = window
        ) -> tuple[Array, KeyValues]:
            kept = KeyValues(keys.transpose(2, 0, 1, 3), values.transpose(2, 0, 3, 1))
            softcap = config.attention_softcap
            return packed_attention(queries, keys, values, segments, window, softcap), kept

        turns = angles.everywhere if sees_all else angles.nearby
        x, kept = block_of(config, block)(x, turns, attend)
        caches.append(kept)
    last = jnp.maximum(prompts.lengths - 1, 0)
    hidden = jnp.take_along_axis(x, last[None, :, None], axis=2)[..., 0]
    return _final_norm(params, config, hidden), tuple(caches)


class Visible(NamedTuple):
    """What each sample sees of its row's prompts (None where the cache has none) and of its own
    columns."""

    prompts: Bool[Array, "B P"] | None
    own: Bool[Array, "B T"]


def decode(
    params: Params,
    tokens: Int[Array, "B"],
    positions: Int[Array, "B"],
    cache: Cache,
    column: Int[Array, ""],
    everything: Visible,
    nearby: Visible,
    table: Rotations,
    *,
    config: ModelConfig,
) -> tuple[Float[Array, "D B"], Cache]:
    """Run one sampled token per sample; its keys and values go to `column` of its own cache.

    Args:
        params: unstacked (`unstack`).
        tokens: the newest token of each sample.
        positions: of the tokens, the prompt counted.
        cache: what came before.
        column: of the own caches, the same for all samples.
        everything, nearby: what layers that see all, and those with a sliding window, attend to.
        table: `rotation_table` of at least all positions.
        config: of the model.

    Returns: final hidden states after the tokens, and the cache that holds them.
    """
    x = _embed(params, config, tokens)
    angles = jax.tree.map(lambda leaf: leaf[:, positions], table)
    written = []
    prompts = cache.prompts or (None,) * config.num_layers
    for number, (block, prompt, own) in enumerate(
        zip(params["blocks"], prompts, cache.own, strict=True)
    ):
        sees_all = config.sees_all(number)

        def attend(
            queries: Array,
            keys: Array,
            values: Array,
            prompt: KeyValues | None = prompt,
            own: KeyValues = own,
            visible: Visible = everything if sees_all else nearby,
        ) -> tuple[Array, KeyValues]:
            now = write_column(own, keys, values, column)
            parts: tuple[tuple[KeyValues, Array], ...] = ((now, visible.own),)
            if prompt is not None and visible.prompts is not None:
                parts = ((prompt, visible.prompts), *parts)
            return decode_attention(queries, parts, softcap=config.attention_softcap), now

        turns = angles.everywhere if sees_all else angles.nearby
        x, now = block_of(config, block)(x, turns, attend)
        written.append(now)
    return _final_norm(params, config, x), cache._replace(own=tuple(written))
