"""The flash kernels of libraries against the attention that the compiler makes of ours.

Without their hardware splash attention is interpreted, and cuDNN's arguments go to the same
function's XLA implementation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rft_jax.config import MeshConfig
from rft_jax.distributed.mesh import batch_sharding, make_mesh, param_shardings
from rft_jax.models import kernels, transformer
from rft_jax.models.axes import logical_axes
from rft_jax.models.packed_attention import packed_attention

SLOTS = 256
ATTENTIONS: dict[str, kernels.PackedAttention] = {
    "splash": functools.partial(kernels.splash, interpret=True),
    "cudnn": functools.partial(kernels.cudnn, implementation="xla"),
}


def packed(width: int, rows: int = 2) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Queries of four heads, keys and values of two, and rows of three sequences and padding."""
    random = np.random.default_rng(0)
    segments = np.repeat(np.array([[1, 2, 3, 0]], np.int32), [100, 27, 90, 39], axis=1)
    shapes = [(heads, width, rows, SLOTS) for heads in (4, 2, 2)]
    queries, keys, values = (
        jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes
    )
    return queries, keys, values, jnp.asarray(np.repeat(segments, rows, axis=0))


def value_and_gradients(attention: kernels.PackedAttention, *arguments: Any) -> tuple[Any, ...]:
    """The output at tokens, and the gradients of a weighted sum of it."""
    *qkv, segments = arguments
    weights = jnp.cos(jnp.arange(qkv[0].size, dtype=jnp.float32)).reshape(qkv[0].shape)

    def total(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = jnp.where(segments > 0, attention(*qkv, segments), 0.0)
        return jnp.sum(weights * found), found

    gradients, found = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*qkv)
    return found, *gradients


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_kernels_give_the_values_and_gradients_of_the_plain_attention(
    name: str, width: int
) -> None:
    arguments = packed(width)
    expected = value_and_gradients(packed_attention, *arguments)
    found = value_and_gradients(ATTENTIONS[name], *arguments)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTIONS)
def test_each_device_runs_the_kernel_on_its_rows_and_heads(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And under every rematerialisation."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    seen: list[tuple[int, ...]] = []

    def watched(queries: Any, keys: Any, values: Any, segments: Any) -> Any:
        seen.append((*queries.shape, *keys.shape[:1], *segments.shape))
        return ATTENTIONS[name](queries, keys, values, segments)

    model = tiny.model(num_layers=1, d_model=32, num_heads=4, num_kv_heads=2, head_dim=64)
    params = transformer.init(jax.random.key(0), config=model, vocab_size=16)
    segments = packed(64, rows=4)[3]
    tokens = jnp.asarray(np.random.default_rng(1).integers(16, size=(4, SLOTS)), jnp.int32)
    positions = jnp.arange(SLOTS, dtype=jnp.int32)[None].repeat(4, axis=0)

    def loss(config: Any) -> Callable[..., jax.Array]:
        def of_rows(params: Any, tokens: Any, positions: Any, segments: Any) -> jax.Array:
            hidden = transformer.hidden_states(params, tokens, positions, segments, config=config)
            weights = jnp.cos(jnp.arange(hidden.shape[0], dtype=jnp.float32))[:, None, None]
            return jnp.sum(jnp.where(segments > 0, weights * hidden, 0.0))

        return of_rows

    expected = jax.grad(loss(model))(params, tokens, positions, segments)
    monkeypatch.setitem(kernels.FLASH, name, kernels._on_each_device(watched))
    placed = jax.device_put(params, param_shardings(mesh, params, logical_axes(params)))
    rows = jax.device_put((tokens, positions, segments), batch_sharding(mesh))
    for remat in ("none", "dots", "full"):
        gradient = jax.grad(loss(dataclasses.replace(model, attention=name, remat=remat)))

        def on_mesh(*arguments: Any, gradient: Any = gradient) -> Any:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return gradient(*arguments)

        found = jax.jit(on_mesh)(placed, *rows)
        for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf, other, atol=1e-4 * np.abs(other).max())
    assert set(seen) == {(2, 64, 1, SLOTS, 1, 1, SLOTS)}


@pytest.mark.parametrize(
    ("kernel", "platform", "slots", "changes", "message"),
    [
        ("splash", "cpu", 256, {}, "splash attention runs on a TPU, and this is cpu"),
        ("splash", "tpu", 200, {}, "splash attention needs an update.row_length that is a "
         "multiple of 128"),
        ("splash", "tpu", 256, {"compute_dtype": "float64"}, "splash attention knows no float64"),
        ("splash", "tpu", 256, {}, ""),
        ("splash", "tpu", 256, {"attention_softcap": 50.0}, "flash kernels know no "
         "model.attention_softcap"),
        ("cudnn", "gpu", 256, {"sliding_window": 100}, "flash kernels see all earlier slots of a "
         "row, and model.sliding_window is 100 of update.row_length, 256"),
        ("cudnn", "cpu", 256, {}, "cuDNN runs on an NVIDIA GPU, and this is cpu"),
        ("cudnn", "gpu", 256, {}, "cuDNN's attention needs model.compute_dtype=bfloat16"),
        ("cudnn", "gpu", 255, {"compute_dtype": "bfloat16"}, "cuDNN's attention needs an even "
         "update.row_length"),
        ("cudnn", "gpu", 256, {"compute_dtype": "bfloat16", "head_dim": 12}, "cuDNN's attention "
         "needs a model.head_dim of 8, 16, ... 128"),
        ("cudnn", "gpu", 256, {"compute_dtype": "bfloat16"}, ""),
        ("xla", "cpu", 7, {}, ""),
    ],
)  # fmt: skip
def test_a_kernel_that_cannot_serve_is_known_beforehand(
    kernel: str, platform: str, slots: int, changes: dict[str, Any], message: str
) -> None:
    assert kernels.cannot(kernel, tiny.model(**changes), slots, platform) == message


def test_auto_takes_the_kernel_of_the_platform_where_it_can_serve() -> None:
    def chosen(platform: str, slots: int, **changes: Any) -> str:
        return kernels.choose(tiny.model(**changes), slots, platform)

    assert chosen("cpu", 256) == "xla"
    assert chosen("tpu", 256) == "splash"
    assert chosen("tpu", 200) == "xla"
    assert chosen("gpu", 200, compute_dtype="bfloat16") == "cudnn"
    assert chosen("gpu", 200) == "xla"
    assert chosen("tpu", 256, sliding_window=256) == "splash"
    assert chosen("tpu", 256, sliding_window=255) == "xla"
    assert chosen("tpu", 256, attention_softcap=50.0) == "xla"
    assert chosen("cpu", 256, attention="splash") == "splash"
