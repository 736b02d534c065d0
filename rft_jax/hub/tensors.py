"""Safetensors files: what a folder holds, by their headers, and any part of a tensor.

Everything here runs on the host, so that damaged files are found before any work on a device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from rft_jax.errors import ModelError
from rft_jax.io.jsonl import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

DTYPES: dict[str, Any] = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}
"""Types of weights that can be read, by their names in a header."""

_OTHERS = {
    "adapter_model.*": "adapters of PEFT, without the model that they stand on",
    "*.gguf": "the format of llama.cpp",
    "consolidated*.safetensors": "weights under names that only their maker uses",
    "*.safetensors": "a file of another name",
    "*.bin": "a pickle, which can run any code",
    "*.pth": "a pickle, which can run any code",
    "*.pt": "a pickle, which can run any code",
    "*.h5": "a format of TensorFlow",
    "*.msgpack": "a format of Flax",
}
"""Weights that are not read, by the names of their files."""

_PIECE_BYTES = 2**24

_REMEDY = "copy or download it again, or use a model from before it diverged"


class Header(NamedTuple):
    """What is known of a tensor without reading it. dtype: as the file names it; name: in the file,
    where that is another than the one it goes by."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    name: str = ""


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """The file by the safetensors library. Raises ModelError for one that is damaged.

    Opened for one tensor at a time: pages of a mapping that stays count as memory in use.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as content:
            yield content
    except (SafetensorError, OSError) as error:
        with file.open("rb") as content:
            pointer = content.read(64).startswith(b"version https://git-lfs")
        reason = "it is a pointer of git-lfs" if pointer else " ".join(str(error).split())
        remedy = "run `git lfs pull` there" if pointer else "copy or download it again"
        raise ModelError(f"{file}: cannot be read as safetensors ({reason}): {remedy}.") from error


def headers(folder: Path) -> dict[str, Header]:
    """All tensors of a folder, from model.safetensors or the shards that its index names.

    Raises ModelError for a file that is missing or damaged, and for an index that does not
    agree with its shards.
    """
    index, single = folder / INDEX, folder / SINGLE
    if not index.is_file():
        if not single.is_file():
            raise _no_weights(folder)
        return dict(_headers_of(single))
    if single.is_file():
        raise ModelError(
            f"{folder}: both {SINGLE} and {INDEX} are here, and may differ: remove one."
        )
    files = _weight_map(index)
    held: list[tuple[str, Header]] = []
    for file in sorted(set(files.values())):
        if not (folder / file).is_file():
            raise ModelError(
                f"{index}: it names {file}, which is missing: copy or download that file."
            )
        held += _headers_of(folder / file)
    places = {(name, header.file.name) for name, header in held}
    for name, file in sorted(places ^ set(files.items())):
        at_fault = "the index does not say so" if (name, file) in places else "it is missing there"
        raise ModelError(
            f"{index}: tensor {name} of {file}: {at_fault}: copy or download the folder again."
        )
    return dict(held)


def files_of_weights(folder: Path) -> list[Path]:
    """The files of weights of a folder that are there: those that its index names, or the one."""
    index = folder / INDEX
    names = sorted(set(_weight_map(index).values())) if index.is_file() else [SINGLE]
    return [folder / name for name in names if (folder / name).is_file()]


def _headers_of(file: Path) -> list[tuple[str, Header]]:
    with opened(file) as content:
        slices = [(name, content.get_slice(name)) for name in content.keys()]  # noqa: SIM118
        return [
            (name, Header(file, part.get_dtype(), tuple(part.get_shape()))) for name, part in slices
        ]


def _weight_map(index: Path) -> dict[str, str]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ModelError(
            f"{index}: it has no weight_map of tensors to files: copy or download it again."
        )
    for file in files.values():
        if Path(file).name != file:
            raise ModelError(
                f"{index}: it names {file}, and only files beside it are read: copy or download it "
                "again."
            )
    return files


def _no_weights(folder: Path) -> ModelError:
    others = ((sorted(folder.glob(pattern)), what) for pattern, what in _OTHERS.items())
    held = next((f" but {paths[0].name}, {what}" for paths, what in others if paths), "")
    return ModelError(
        f"{folder}: there is no {SINGLE} or {INDEX} here{held}: take a revision that has them, or "
        "convert the model once by save_pretrained of transformers and name the new folder."
    )


def read(
    header: Header, name: str, rows: slice = slice(None), columns: slice = slice(None)
) -> np.ndarray:
    """A part of a tensor of one or two axes, in the file's type; nothing else is read."""
    where = (rows, columns)[: len(header.shape)]
    with opened(header.file) as content:
        return content.get_slice(header.name or name)[where if len(where) > 1 else rows]


def check_finite(held: Mapping[str, Header]) -> None:
    """Raise ModelError, naming tensor and file, for the first NaN or infinity. Reads everything."""
    for name, header in held.items():
        for first, piece in _pieces(header, name):
            require_finite(piece, f"{header.file}: tensor {name}", _REMEDY, first)


def _pieces(header: Header, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, rows) of a tensor."""
    row = math.prod(header.shape[1:]) * np.dtype(DTYPES[header.dtype]).itemsize
    count = max(1, _PIECE_BYTES // max(row, 1))
    with opened(header.file) as content:
        part = content.get_slice(header.name or name)
        for first in range(0, header.shape[0], count):
            yield first, part[first : min(first + count, header.shape[0])]


def require_finite(values: np.ndarray, what: str, remedy: str, first_row: int = 0) -> None:
    """Raise ModelError when a value is NaN or infinite.

    Args:
        values: floats, at least one axis.
        what: tensor and file, for the message.
        remedy: what to do about it, the end of the message.
        first_row: which row of the tensor the first row of `values` is.
    """
    with np.errstate(invalid="ignore"):  # of a signalling NaN
        finite = np.isfinite(values)
    if not finite.all():
        where = np.unravel_index(np.argmin(finite), values.shape)
        shown = [int(where[0]) + first_row, *map(int, where[1:])]
        raise ModelError(
            f"{what} is {values[where]} at {shown}, and finite numbers are expected: {remedy}."
        )


def same_bits(one: Header, name: str, other: Header, other_name: str) -> bool:
    """Whether two tensors are of one type and shape, and hold the same bits."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    pairs = zip(_pieces(one, name), _pieces(other, other_name), strict=True)
    return all(a.tobytes() == b.tobytes() for (_, a), (_, b) in pairs)
