"""config.json files of earlier versions, written by real runs: each must load for ever.

A new field needs a default, which means what runs without the field did.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rft_jax.checkpoint.provenance import check_same_config, load_config
from rft_jax.config.serialize import flatten

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(GOLDEN.glob("config-*/*.json"))


def test_the_files_are_there() -> None:
    names = {path.stem for path in FILES if path.parent.name == "config-0.1.0"}
    assert names == {"sft", "rft", "online_rft_refill", "lora", "hf_start"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_saved_config_loads_for_ever(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / json.loads(path.read_text())["name"]
    folder.mkdir()
    (folder / "config.json").write_bytes(path.read_bytes())
    config = load_config(folder)
    check_same_config(folder, config)
    values = flatten(config)
    for name, saved in json.loads(path.read_text())["config"].items():
        inner = {f"{name}.{field}": value for field, value in saved.items()} if isinstance(
            saved, dict) else {name: saved}  # fmt: skip
        for field, value in inner.items():
            assert values[field] == (tuple(value) if isinstance(value, list) else value), field
