"""Published weights into parameters on the mesh, one tensor at a time."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from rft_jax.hub.names import Tensor
from rft_jax.hub.weights import Weights, read_part
from rft_jax.types import Params


def load_params(weights: Weights, like: Params) -> Params:
    """The parameters that `weights` hold.

    Every process reads what its own devices hold, and no more than one tensor of it, or one layer
    of a tensor, is on the host at a time. It goes to the devices in the file's type and takes that
    of the parameter there. Values are those of the file: `weights.check_values` says whether they
    are fit for use.

    Args:
        like: a tree of ShapeDtypeStructs with shardings (distributed/shards.py, abstract): the
            layout and the types.
    """
    parts: dict[tuple[str, ...], list[Tensor]] = {}
    for tensor in weights.tensors:
        parts.setdefault(tensor.path, []).append(tensor)
    params: Params = {}
    for path, of_param in parts.items():
        node, shapes = params, like
        for name in path[:-1]:
            node, shapes = node.setdefault(name, {}), shapes[name]
        load = _whole if of_param[0].layer is None else _stacked
        node[path[-1]] = load(weights, of_param, shapes[path[-1]])
    return params


def _whole(weights: Weights, tensors: list[Tensor], like: jax.ShapeDtypeStruct) -> Array:
    """A parameter that is one tensor."""
    part = _place(weights, tensors[0], like.sharding)
    # A copy: on CPU the array may lie in memory of numpy, which an update could not be given.
    convert = functools.partial(jnp.array, dtype=like.dtype, copy=True)
    return jax.jit(convert, out_shardings=like.sharding)(part)


def _stacked(weights: Weights, tensors: list[Tensor], like: jax.ShapeDtypeStruct) -> Array:
    """A parameter of all layers, filled in place."""
    assert like.sharding.spec[:1] in ((), (None,)), "layers are not split"
    of_layer = NamedSharding(like.sharding.mesh, PartitionSpec(*like.sharding.spec[1:]))
    zeros = functools.partial(jnp.zeros, like.shape, like.dtype)
    leaf = jax.jit(zeros, out_shardings=like.sharding)()
    write = jax.jit(_write, donate_argnums=0, out_shardings=like.sharding)
    for tensor in tensors:
        assert tensor.layer is not None
        part = _place(weights, tensor, of_layer)
        leaf = write(leaf, part, np.int32(tensor.layer))
        # The next tensor is read once this one has left the host.
        part.block_until_ready()
    return leaf


def _write(leaf: Array, part: Array, layer: Int[Any, ""]) -> Array:
    return jax.lax.dynamic_update_index_in_dim(leaf, part.astype(leaf.dtype), layer, axis=0)


def _place(weights: Weights, tensor: Tensor, sharding: NamedSharding) -> Array:
    """A tensor in the file's type on the devices of `sharding`."""
    read: dict[tuple[Any, ...], np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        # Devices that hold copies ask one after another.
        key = tuple((axis.start, axis.stop) for axis in index)
        if key not in read:
            read[key] = read_part(weights, tensor, index)
        return read[key]

    return jax.make_array_from_callback(tensor.param_shape, sharding, part)
