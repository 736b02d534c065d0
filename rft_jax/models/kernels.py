"""Attention in packed rows by the flash kernels of libraries: cuDNN on a GPU, splash on a TPU.

Same arguments as rft_jax/models/packed_attention.py and, but for rounding, the same results, except
that what padding slots get is finite but without meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from rft_jax.config import ModelConfig
from rft_jax.distributed.mesh import partition
from rft_jax.models.packed_attention import RESULTS, scaled

PackedAttention = Callable[[Array, Array, Array, Array], Array]
"""(queries [N, H, R, S], keys [K, H, R, S], values, segments [R, S]) -> [N, H, R, S]."""

TILE = 128
"""Splash attention takes slots in tiles of a multiple of this size."""
LARGEST_TILE = 512
CUDNN_WIDEST = 128
"""The widest head that cuDNN's attention takes on every GPU."""


def cannot(kernel: str, config: ModelConfig, slots: int, platform: str) -> str:
    """Why a kernel cannot serve; empty if it can.

    Args:
        kernel: as in model.attention.
        config: of the model.
        slots: S, the length of a row.
        platform: of jax (`cpu`, `gpu`, `tpu`).
    """
    if kernel in FLASH:
        if config.attention_softcap:
            return "flash kernels know no model.attention_softcap"
        if 0 < config.sliding_window < slots:
            return (
                f"flash kernels see all earlier slots of a row, and model.sliding_window is "
                f"{config.sliding_window} of update.row_length, {slots}"
            )
    if kernel == "cudnn":
        if platform != "gpu":
            return f"cuDNN runs on an NVIDIA GPU, and this is {platform}"
        if config.compute_dtype != "bfloat16":
            return "cuDNN's attention needs model.compute_dtype=bfloat16"
        if config.head_dim % 8 or config.head_dim > CUDNN_WIDEST:
            return f"cuDNN's attention needs a model.head_dim of 8, 16, ... {CUDNN_WIDEST}"
        if slots % 2:
            return "cuDNN's attention needs an even update.row_length"
    if kernel == "splash":
        if platform != "tpu":
            return f"splash attention runs on a TPU, and this is {platform}"
        if slots % TILE:
            return f"splash attention needs an update.row_length that is a multiple of {TILE}"
        if config.compute_dtype == "float64":
            return "splash attention knows no float64"
    return ""


def choose(config: ModelConfig, slots: int, platform: str) -> str:
    """What model.attention names; for `auto` the platform's kernel if it can serve, else XLA."""
    if config.attention != "auto":
        return config.attention
    return next((name for name in FLASH if not cannot(name, config, slots, platform)), "xla")


def _on_each_device(function: PackedAttention) -> PackedAttention:
    """`function` on each device's rows and heads, along those axes of the enclosing mesh that are
    not manual yet: the compiler cannot split a kernel."""

    def attend(queries: Array, keys: Array, values: Array, segments: Array) -> Array:
        mesh = jax.sharding.get_abstract_mesh()
        free = set(mesh.axis_names) - set(mesh.manual_axes)
        if not free:
            return function(queries, keys, values, segments)
        by_head = partition("heads", None, "rows", among=free)
        by_row = partition("rows", among=free)
        mapped: Any = jax.shard_map(
            function,
            in_specs=(by_head, by_head, by_head, by_row),
            out_specs=by_head,
            axis_names=free,
            check_vma=False,
        )
        result: Array = mapped(queries, keys, values, segments)
        return result

    return attend


def splash(
    queries: Float[Array, "N H R S"],
    keys: Float[Array, "K H R S"],
    values: Float[Array, "K H R S"],
    segments: Int[Array, "R S"],
    *,
    interpret: bool = False,
) -> Float[Array, "N H R S"]:
    """Splash attention (jax.experimental.pallas).

    Args as in packed_attention.packed_attention; interpret: run without a TPU, slowly.
    """
    # Not everyone who imports the model has Pallas for TPUs installed.
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    heads, _, _, slots = queries.shape
    tile = max(size for size in range(TILE, LARGEST_TILE + 1, TILE) if slots % size == 0)
    sizes = library.BlockSizes(
        block_q=tile, block_kv=tile, block_q_dkv=tile, block_kv_dkv=tile,
        block_q_dq=tile, block_kv_dq=tile,
    )  # fmt: skip
    mask = library.MultiHeadMask([library.CausalMask((slots, slots))] * heads)
    kernel = library.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=RESULTS,
        interpret=interpret,
    )

    def of_row(queries: Array, keys: Array, values: Array, row: Array) -> Array:
        mixed: Array = kernel(queries, keys, values, segment_ids=library.SegmentIds(row, row))
        return mixed

    q, k, v = (x.transpose(2, 0, 3, 1) for x in (scaled(queries), keys, values))
    return jax.vmap(of_row)(q, k, v, segments).transpose(1, 3, 0, 2)


def cudnn(
    queries: Float[Array, "N H R S"],
    keys: Float[Array, "K H R S"],
    values: Float[Array, "K H R S"],
    segments: Int[Array, "R S"],
    *,
    implementation: Any = "cudnn",
) -> Float[Array, "N H R S"]:
    """jax.nn.dot_product_attention; implementation: `xla` to run without a GPU.

    Its log-sum-exp has no name for model.remat, so the backward pass runs the forward kernel again.
    """
    slots = jnp.arange(segments.shape[1])
    mask = segments[:, None, :, None] == segments[:, None, None, :]
    mask = mask & (slots[:, None] >= slots[None])[None, None]
    q, k, v = (x.transpose(2, 3, 0, 1) for x in (queries, keys, values))
    mixed = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation)
    return checkpoint_name(mixed.transpose(2, 3, 0, 1), RESULTS)


FLASH: dict[str, PackedAttention] = {
    "cudnn": _on_each_device(cudnn),
    "splash": _on_each_device(splash),
}
"""By the name in model.attention."""
