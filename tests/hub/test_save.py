"""Parameters as a published model: transformers reads it without a word, and it comes back."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import programs
import pytest
import reference_models
from imports import imported
from reference_models import transformers
from safetensors.numpy import load_file

from rft_jax.config import ModelConfig
from rft_jax.errors import ConfigError, ModelError
from rft_jax.hub import save as exporting
from rft_jax.hub.families import model_of
from rft_jax.hub.folder import raw_config
from rft_jax.hub.raw_config import raw_config_of
from rft_jax.hub.save import save_pretrained
from rft_jax.hub.tensors import INDEX, SINGLE, headers, read
from rft_jax.models import transformer
from rft_jax.types import Params

pytestmark = pytest.mark.slow

MESH = (2, 2, 2)
TINY = ModelConfig(
    num_layers=2, d_model=24, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=40, vocab_size=96
)


def random_params(config: ModelConfig, seed: int = 0) -> Params:
    return transformer.init(jax.random.key(seed), config=config, vocab_size=config.vocab_size)


def raw_of(config: ModelConfig) -> dict[str, Any]:
    return raw_config_of(config, max_positions=64, eos_ids=[2], bos_id=1, pad_id=0)


def bits(tree: Params) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def load_quietly(folder: Path, caplog: pytest.LogCaptureFixture) -> Any:
    """transformers' model; a warning, or a word about weights, is an error."""
    transformers.utils.logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING), warnings.catch_warnings():
            warnings.simplefilter("error")
            model, report = reference_models.load(folder)
    finally:
        transformers.utils.logging.disable_propagation()
    assert not [record for record in caplog.records if record.name.startswith("transformers")]
    assert not any(report.values()), report
    return model


@pytest.mark.parametrize("case", reference_models.CASES)
def test_transformers_reads_what_it_wrote(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    theirs = reference_models.save(case, source)
    config, params = imported(source, 1, 1, 1)
    save_pretrained(
        params, config, target, raw=raw_config(source), dtype="float32", max_shard_bytes=20_000
    )
    again = load_quietly(target, caplog)
    state, expected = again.state_dict(), theirs.state_dict()
    assert state.keys() == expected.keys()
    assert all((state[name] == expected[name]).all() for name in expected)
    assert raw_config(target) == raw_config(source)
    assert (target / INDEX).exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back_keeps_every_bit(tmp_path: Path, dtype: Any, tied: bool) -> None:
    case = "gemma3" if tied else "qwen2_window"
    reference_models.save(case, tmp_path / "source", dtype=dtype)
    config, params = imported(tmp_path / "source", *MESH)
    raw = raw_config(tmp_path / "source")
    save_pretrained(params, config, tmp_path / "target", raw=raw, dtype=dtype)
    again, back = imported(tmp_path / "target", *MESH)
    assert again == config
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert bits(back) == bits(params)
    assert ("lm_head.weight" in headers(tmp_path / "target")) == (not tied)


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"tie_embeddings": True, "rope_scaling": "linear", "rope_factor": 2.0},
        {"sliding_window": 4},
        {"qkv_bias": True, "sliding_window": 4, "global_every": 2},
        {"qk_norm": True, "rope_theta": 500.0},
        {"norm_offset": True, "post_norms": True, "scale_embeddings": True, "final_softcap": 5.0},
    ],
    ids=lambda switches: ",".join(switches) or "plain",
)
def test_models_that_never_had_a_config_json(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, switches: dict[str, Any]
) -> None:
    config = replace(TINY, **switches)
    params = random_params(config)
    save_pretrained(params, config, tmp_path / "out", raw=raw_of(config), dtype="float32")
    assert model_of(str(tmp_path / "out")) == config
    theirs = load_quietly(tmp_path / "out", caplog)
    table = theirs.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(table, params["embedding"])
    assert theirs.config.max_position_embeddings == 64


def test_bfloat16_is_rounded_to_the_nearest(tmp_path: Path) -> None:
    params = random_params(TINY)
    save_pretrained(params, TINY, tmp_path / "out", raw=raw_of(TINY))
    written = load_file(tmp_path / "out" / SINGLE)["model.embed_tokens.weight"]
    expected = np.asarray(params["embedding"]).astype(ml_dtypes.bfloat16)
    assert written.dtype == expected.dtype
    assert written.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("had", "has"),
    [
        ({}, {"torch_dtype": "bfloat16"}),
        ({"torch_dtype": "float16"}, {"torch_dtype": "bfloat16"}),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"own": [1]}, {"own": [1], "torch_dtype": "bfloat16"}),
    ],
)
def test_config_json_keeps_its_keys(tmp_path: Path, had: Any, has: Any) -> None:
    raw = raw_of(TINY)
    save_pretrained(random_params(TINY), TINY, tmp_path / "out", raw=raw | had)
    assert raw_config(tmp_path / "out") == raw | has


def test_shards_and_their_index(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    save_pretrained(
        random_params(TINY), TINY, folder, raw=raw_of(TINY), dtype="float32", max_shard_bytes=10_000
    )
    index = json.loads((folder / INDEX).read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == [
        f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)
    ]
    assert len(files) > 3
    sizes = [sum(v.nbytes for v in load_file(folder / file).values()) for file in files]
    assert max(sizes) <= 10_000
    assert sum(sizes) == index["metadata"]["total_size"]
    assert index["weight_map"] == {
        name: header.file.name for name, header in headers(folder).items()
    }


def test_a_tensor_larger_than_a_shard_has_one_to_itself(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    params = random_params(TINY)
    save_pretrained(params, TINY, folder, raw=raw_of(TINY), dtype="float32", max_shard_bytes=4_000)
    held = [load_file(path) for path in folder.glob("*.safetensors")]
    sizes = [sum(values.nbytes for values in shard.values()) for shard in held]
    assert max(sizes) > 4_000
    assert all(size <= 4_000 or len(shard) == 1 for size, shard in zip(sizes, held, strict=True))
    assert {name for shard in held for name in shard} == set(headers(folder))


def test_other_files_come_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    folder.mkdir(parents=True)
    files = {"tokenizer.json": b"{}", "README.md": "Größe\n".encode()}
    save_pretrained(random_params(TINY), TINY, folder, raw=raw_of(TINY), files=files)
    assert {path.name for path in folder.iterdir()} == {"config.json", SINGLE, *files}
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / SINGLE).stat().st_mode) == 0o644
    assert os.listdir(tmp_path / "new") == ["out"]


def refusal(params: Params, config: ModelConfig, folder: Path, kind: type[Exception]) -> str:
    """The one line of the error that an export raises; nothing is left of the attempt."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(kind) as error:
        save_pretrained(params, config, folder, raw=raw_of(TINY))
    assert sorted(folder.parent.rglob("*")) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").touch()
    said = "it is no empty folder, and nothing is written over: name a new one."
    for name in ("out", "out/notes"):
        message = refusal(random_params(TINY), TINY, tmp_path / name, ModelError)
        assert message == f"{tmp_path / name}: {said}"


def test_a_model_that_diverged_is_not_written(tmp_path: Path) -> None:
    params = random_params(TINY)
    params["blocks"]["mlp"]["up"] = params["blocks"]["mlp"]["up"].at[1, 2, 3].set(jnp.nan)
    message = refusal(params, TINY, tmp_path / "out", ModelError)
    assert "tensor model.layers.1.mlp.up_proj.weight is nan at [2, 3], and finite" in message
    assert message.endswith("export a checkpoint from before the run diverged.")


def test_another_models_config_json(tmp_path: Path) -> None:
    other = replace(TINY, rope_theta=7.0)
    message = refusal(random_params(other), other, tmp_path / "out", ConfigError)
    assert "model.rope_theta is 7.0, expected 10000.0" in message


def test_another_vocabulary(tmp_path: Path) -> None:
    params = random_params(replace(TINY, vocab_size=80))
    message = refusal(params, TINY, tmp_path / "out", ModelError)
    assert "the embedding has 80 rows and model.vocab_size is 96" in message


def test_adapters_must_be_merged(tmp_path: Path) -> None:
    config = replace(TINY, lora_rank=2, lora_alpha=4.0, lora_targets=("query",))
    message = refusal(random_params(config), config, tmp_path / "out", ModelError)
    assert "model.lora_rank is 2, and adapters have no place" in message


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Each reads its own parts of a model; one writes what both hold."""
    reference_models.save("gemma3", tmp_path / "source")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": programs.xla_flags(2)}
    script = Path(__file__).parents[1] / "one_of_two_processes.py"
    running = [
        subprocess.Popen(
            [sys.executable, script, address, str(number), tmp_path / "source", tmp_path / "out"],
            env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in running:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    before, after = headers(tmp_path / "source"), headers(tmp_path / "out")
    assert before.keys() == after.keys()
    for name in before:
        assert read(after[name], name).tobytes() == read(before[name], name).tobytes(), name


def test_an_export_that_is_stopped_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "_write_shards", stop)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(random_params(TINY), TINY, tmp_path / "out", raw=raw_of(TINY))
    assert not list(tmp_path.iterdir())
