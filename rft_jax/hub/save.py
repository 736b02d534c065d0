"""Parameters as a published model: config.json and safetensors files that transformers reads."""

from __future__ import annotations

import functools
import glob
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from jax.experimental import multihost_utils
from jaxtyping import Array, Int

from rft_jax.config import ModelConfig
from rft_jax.distributed.collectives import is_main
from rft_jax.errors import ModelError
from rft_jax.hub.folder import require_fresh
from rft_jax.hub.names import Tensor, tensors
from rft_jax.hub.raw_config import check_same
from rft_jax.hub.tensors import INDEX, require_finite
from rft_jax.io.drafts import draft_of, remove_dead
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

    No more than one shard is on the host at a time. Every process calls this; one writes.

    Args:
        params: in any layout, on any mesh.
        raw: the config.json that is written, but for its dtype: that of the model the run began
            from, or raw_config_of.
        files: what else belongs there, by name (tokenizer, generation config, model card).
        max_shard_bytes: of a file of weights; a larger tensor has one to itself.

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
    wanted = {tensor.name: tensor for tensor in tensors(config, rows)}
    itemsize = np.dtype(dtype).itemsize
    plan = split_state_dict_into_shards_factory(
        wanted,
        get_storage_size=lambda tensor: math.prod(tensor.shape) * itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    shards = {
        file: [wanted[name] for name in names] for file, names in plan.filename_to_tensors.items()
    }
    fetch = functools.partial(_fetch, params, dtype, folder)
    if not is_main():
        for tensor in itertools.chain(*shards.values()):
            fetch(tensor)
    else:
        contents = {"config.json": _json(_with_dtype(raw, dtype)), **(files or {})}
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            contents[INDEX] = _json(index)
        with _fresh(folder) as inside:
            for name, content in contents.items():
                (inside / name).write_bytes(content)
            _write_shards(shards, inside, fetch)
            for path in inside.iterdir():
                path.chmod(0o644)  # safetensors lets only its owner read a file
                with path.open("rb") as file:
                    os.fsync(file.fileno())
    multihost_utils.sync_global_devices(f"exported {folder}")


def _write_shards(
    shards: Mapping[str, Sequence[Tensor]], folder: Path, fetch: Callable[[Tensor], np.ndarray]
) -> None:
    from safetensors.numpy import save_file

    for file, shard in shards.items():
        held = {tensor.name: fetch(tensor) for tensor in shard}
        # transformers refuses a file that does not say which library its tensors are of.
        save_file(held, folder / file, metadata={"format": "pt"})


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


@contextmanager
def _fresh(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; it takes its name in the end, or vanishes."""
    require_fresh(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    hidden = folder.with_name(f".{folder.name}")
    remove_dead(folder.parent, f"{glob.escape(hidden.name)}.*.tmp")
    inside = draft_of(hidden)
    inside.mkdir()
    try:
        yield inside
        os.replace(inside, folder)
    except BaseException:
        shutil.rmtree(inside)
        raise


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
