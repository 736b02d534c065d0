"""config.json files of earlier versions, written by real runs: each must load for ever.

A new field needs a default, which means what runs without the field did.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from rft_jax.checkpoint.provenance import check_same_config, load_config
from rft_jax.config import Config
from rft_jax.config.serialize import flatten, plain
from rft_jax.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(GOLDEN.glob("config-*/*.json"))


def test_the_files_are_there() -> None:
    names = {path.stem for path in FILES if path.parent.name == "config-0.1.0"}
    assert names == {"sft", "rft", "online_rft_refill", "lora", "hf_start"}


@pytest.mark.parametrize("prompt_format", ["text", "chat"])
def test_a_default_prompt_is_the_one_that_was_written_out(
    tmp_path: Path, prompt_format: Literal["text", "chat"]
) -> None:
    config = load_config_of(FILES[0], tmp_path)
    assert config.data.prompt_template == "{question}\n"
    data = replace(config.data, prompt_format=prompt_format, prompt_template="")
    (tmp_path / "config.json").write_text(json.dumps({"config": plain(replace(config, data=data))}))
    assert load_config(tmp_path).data.prompt_template == data.template
    check_same_config(tmp_path, replace(config, data=data))
    other = replace(config, data=replace(config.data, prompt_format=prompt_format))
    if prompt_format == "text":
        check_same_config(tmp_path, other)
    else:
        with pytest.raises(ConfigError, match=r"data.prompt_template is '\{question\}\\n', was '"):
            check_same_config(tmp_path, other)


def load_config_of(path: Path, folder: Path) -> Config:
    (folder / "config.json").write_bytes(path.read_bytes())
    return load_config(folder)


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
