"""Parameters as a published model: config.json and safetensors files that transformers reads."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Int

from rft_jax.config import ModelConfig
from rft_jax.distributed.collectives import is_main
from rft_jax.errors import ModelError
from rft_jax.hub.names import Tensor, tensors
from rft_jax.hub.raw_config import check_same
from rft_jax.hub.tensors import INDEX, SINGLE, require_finite
from rft_jax.types import Params

Dtype = Literal["float32", "bfloat16"]

MAX_SHARD_BYTES = 4 * 10**9

_REMEDY = "export a checkpoint from before the run diverged"


def save_pretrained(
    params: Params,
    config: ModelConfig,
    folder: Path,
    *,
    raw: Mapping[str, Any],
    dtype: Dtype = "bfloat16",
    files: Mapping[str, bytes] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model into `folder`, which must be new or empty; it appears whole or not at all.

    raw: the config.json that is written, but for its dtype: that of the model the run began from,
    or raw_config_of. files: what else belongs there, by name (tokenizer, generation config, model
    card). No more than one shard is on the host at a time. Every process calls this; one writes.
    Raises ModelError for adapters that are not merged, another vocabulary than `config` has, a
    folder that holds something and values that are not finite, ConfigError when `raw` states
    another model than `config`.
    """
    if config.lora_rank:
        raise ModelError(
            f"{folder}: model.lora_rank is {config.lora_rank}, and adapters have no place in a "
            "published model: merge them first (rft_jax.models.adapters.merge)."
        )
    check_same(config, raw)
    rows = params["embedding"].shape[0]
    if rows != config.vocab_size:
        raise ModelError(
            f"{folder}: the embedding has {rows} rows and model.vocab_size is {config.vocab_size}: "
            "state that number in model.vocab_size and in config.json."
        )
    wanted = tensors(config, rows)
    shards = plan_shards(wanted, np.dtype(dtype).itemsize, max_shard_bytes)
    if not is_main():
        for shard in shards:
            for tensor in shard:
                _fetch(params, dtype, folder, tensor)
    else:
        with _fresh(folder) as inside:
            _write_json(inside / "config.json", _with_dtype(raw, dtype))
            for name, content in (files or {}).items():
                _write_bytes(inside / name, content)
            _write_shards(shards, inside, functools.partial(_fetch, params, dtype, folder))
    multihost_utils.sync_global_devices(f"exported {folder}")


def plan_shards(
    wanted: Sequence[Tensor], itemsize: int, max_shard_bytes: int
) -> tuple[tuple[Tensor, ...], ...]:
    """The tensors in order, cut into shards of `max_shard_bytes` at most (a larger tensor has one
    to itself)."""
    shards: list[list[Tensor]] = []
    room = 0
    for tensor in wanted:
        size = math.prod(tensor.shape) * itemsize
        if not shards or size > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= size
    return tuple(tuple(shard) for shard in shards)


def _write_shards(
    shards: Sequence[Sequence[Tensor]], folder: Path, fetch: Callable[[Tensor], np.ndarray]
) -> None:
    from safetensors.numpy import save_file

    count = len(shards)
    places: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, start=1):
        file = SINGLE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
        held = {tensor.name: fetch(tensor) for tensor in shard}
        total += sum(values.nbytes for values in held.values())
        places |= dict.fromkeys(held, file)
        # transformers refuses a file that does not say which library its tensors are of.
        save_file(held, folder / file, metadata={"format": "pt"})
        # The library leaves a file to its owner alone.
        (folder / file).chmod(0o644)
        _to_disk(folder / file)
    if count > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _fetch(params: Params, dtype: Dtype, folder: Path, tensor: Tensor) -> np.ndarray:
    """A tensor on the host, in the file's type and shape; every process must ask for it.

    Raises ModelError, in all of them, for values that are not finite.
    """
    leaf: Any = params
    for name in tensor.path:
        leaf = leaf[name]
    index = () if tensor.layer is None else (np.int32(tensor.layer),)
    part = multihost_utils.process_allgather(_take(leaf, index, dtype=dtype), tiled=True)
    values = np.asarray(part).reshape(tensor.shape)
    require_finite(values, f"{folder}: tensor {tensor.name}", _REMEDY)
    return values


@jax.jit(static_argnames="dtype")
def _take(leaf: Array, index: tuple[Int[Any, ""], ...], *, dtype: Dtype) -> Array:
    return leaf[index].astype(dtype)


def _with_dtype(raw: Mapping[str, Any], dtype: Dtype) -> dict[str, Any]:
    """config.json with the type of the weights, under the key it has: newer versions of
    transformers write dtype, and all read torch_dtype."""
    keys = [key for key in ("dtype", "torch_dtype") if key in raw]
    return {**raw, **dict.fromkeys(keys or ["torch_dtype"], dtype)}


def require_fresh(folder: Path) -> None:
    """Raise ModelError for a file, and for a folder that holds something."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ModelError(
            f"{folder}: it is no empty folder, and nothing is written over: name a new one."
        )


@contextmanager
def _fresh(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; it takes its name in the end, or vanishes."""
    require_fresh(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    inside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield inside
        # A temporary folder is its owner's alone.
        inside.chmod(0o755)
        os.replace(inside, folder)
    except BaseException:
        shutil.rmtree(inside)
        raise


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    _to_disk(path)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
