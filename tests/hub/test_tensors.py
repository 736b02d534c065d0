"""Safetensors files: what is held is found, and what is damaged is named before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from rft_jax.errors import ModelError
from rft_jax.hub import tensors
from rft_jax.hub.tensors import INDEX, SINGLE, check_finite, headers, read, require_finite

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

A = np.arange(24, dtype=np.float32).reshape(6, 4) / 7
B = A.astype(ml_dtypes.bfloat16)
C = A[0].astype(np.float16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards: a in one, b and c in two."""
    save_file({"a": A}, tmp_path / ONE)
    save_file({"b": B, "c": C}, tmp_path / TWO)
    write_index(tmp_path, {"a": ONE, "b": TWO, "c": TWO})
    return tmp_path


def write_index(folder: Path, places: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def refusal(act: Callable[[], object]) -> str:
    """The one line of the error that is raised."""
    with pytest.raises(ModelError) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_headers_of_shards(folder: Path) -> None:
    held = headers(folder)
    assert {name: (h.file.name, h.dtype, h.shape) for name, h in held.items()} == {
        "a": (ONE, "F32", (6, 4)),
        "b": (TWO, "BF16", (6, 4)),
        "c": (TWO, "F16", (4,)),
    }


def test_headers_of_one_file(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / SINGLE)
    save_file({"b": A}, tmp_path / "other.safetensors")
    assert list(headers(tmp_path)) == ["a"]


@given(st.data())
def test_a_part_is_that_part(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("parts")
    values = {"F32": A, "BF16": B, "F16": A.astype(np.float16)}
    save_file(values, folder / SINGLE)
    rows, columns = (
        slice(
            *sorted(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True)))
        )
        for size in A.shape
    )
    for name, header in headers(folder).items():
        part = read(header, name, rows, columns)
        assert part.dtype == values[name].dtype
        assert part.tobytes() == values[name][rows, columns].tobytes()
    shutil.rmtree(folder)


def test_a_part_of_one_axis(folder: Path) -> None:
    assert read(headers(folder)["c"], "c", slice(1, 3)).tolist() == C[1:3].tolist()


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: cut(f / TWO, -5), f"{TWO}: cannot be read as safetensors (Error"),
        (lambda f: cut(f / TWO, 20), f"{TWO}: cannot be read as safetensors (Error"),
        (lambda f: cut(f / TWO, 0), f"{TWO}: cannot be read as safetensors (Error"),
        (lambda f: (f / TWO).write_text("{}"), f"{TWO}: cannot be read as safetensors (Error"),
        (
            lambda f: (f / TWO).write_text("version https://git-lfs.github.com/spec/v1\noid 1"),
            "it is a pointer of git-lfs): run `git lfs pull` there.",
        ),
        (lambda f: (f / TWO).unlink(), f"{INDEX}: it names {TWO}, which is missing"),
        (
            lambda f: write_index(f, {"a": ONE, "b": TWO}),
            f"{INDEX}: tensor c of {TWO}: the index does not say so",
        ),
        (
            lambda f: write_index(f, {"a": ONE, "b": TWO, "c": ONE}),
            f"{INDEX}: tensor c of {ONE}: it is missing there",
        ),
        (
            lambda f: write_index(f, {"a": ONE, "b": TWO, "c": TWO, "d": ONE}),
            f"{INDEX}: tensor d of {ONE}: it is missing there",
        ),
        (
            lambda f: save_file({"a": A, "b": B, "c": C}, f / TWO),
            f"{INDEX}: tensor a of {TWO}: the index does not say so",
        ),
        (lambda f: write_index(f, {"a": "../x.safetensors"}), "only files beside it are read"),
        (lambda f: write_index(f, None), f"{INDEX}: it has no weight_map"),
        (lambda f: write_index(f, {"a": 3}), f"{INDEX}: it has no weight_map"),
        (lambda f: (f / INDEX).write_text("{"), f"{INDEX}: cannot be read as JSON (Expecting"),
        (lambda f: (f / INDEX).write_text("[]"), f"{INDEX}: it is a JSON list, expected an object"),
        (lambda f: shutil.copy(f / ONE, f / SINGLE), f"both {SINGLE} and {INDEX} are here"),
    ],
)
def test_damaged_folders(folder: Path, damage: Callable[[Path], Any], said: str) -> None:
    damage(folder)
    message = refusal(lambda: headers(folder))
    assert message.startswith(str(folder))
    assert said in message


def test_pickles_are_refused(tmp_path: Path) -> None:
    assert f"{tmp_path}: there is no {SINGLE} or {INDEX} here: " in refusal(
        lambda: headers(tmp_path)
    )
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    message = refusal(lambda: headers(tmp_path))
    assert "here but pytorch_model.bin, a pickle, which can run any code: take a" in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model-Q4_K_M.gguf", "the format of llama.cpp"),
        ("consolidated.00.pth", "a pickle"),
        ("consolidated.safetensors", "weights under names that only their maker uses"),
        ("adapter_model.safetensors", "adapters of PEFT"),
        ("weights.safetensors", "a file of another name"),
        ("tf_model.h5", "a format of TensorFlow"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert f"here but {name}, {said}" in refusal(lambda: headers(tmp_path))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 4, 6])
def test_values_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any, bad: float, row: int
) -> None:
    monkeypatch.setattr(tensors, "_PIECE_BYTES", 24)  # a few rows
    values = np.ones((7, 3), dtype)
    values[1, 1] = np.finfo(np.float16).max  # large, and finite in every type
    save_file({"fine": values}, tmp_path / SINGLE)
    check_finite(headers(tmp_path))
    values[row, 2] = bad
    save_file({"fine": values[:1, :2], "bad": values}, tmp_path / SINGLE)
    message = refusal(lambda: check_finite(headers(tmp_path)))
    assert message.startswith(f"{tmp_path / SINGLE}: tensor bad is {bad} at [{row}, 2], and finite")


@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=1, max_dims=2)))
def test_the_bits_say_what_is_finite(bits: np.ndarray) -> None:
    for dtype in (ml_dtypes.bfloat16, np.float16):
        values = bits.view(dtype)
        if np.isfinite(values.astype(np.float32)).all():
            require_finite(values, "it", "mend it")
        else:
            assert "and finite numbers are expected: mend it." in refusal(
                lambda values=values: require_finite(values, "it", "mend it")
            )


def test_every_tensor_is_looked_at(folder: Path) -> None:
    """One of one axis too, in the last shard."""
    broken = C.copy()
    broken[-1] = np.nan
    save_file({"b": B, "c": broken}, folder / TWO)
    assert "tensor c is nan at [3]" in refusal(lambda: check_finite(headers(folder)))
