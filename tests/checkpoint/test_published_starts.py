"""Runs that start from a published model, and folders that cannot serve as one."""

from __future__ import annotations

import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import jax
import numpy as np
import pytest
import reference_models
import reference_tokenizers
import tiny_experiment
from safetensors.numpy import load_file, save_file

from rft_jax.checkpoint import policy as policies
from rft_jax.checkpoint import provenance
from rft_jax.checkpoint.inputs import of_weights
from rft_jax.checkpoint.start import Start, load_start
from rft_jax.commands import main as cli
from rft_jax.config import Config, DataConfig, TokenizerConfig, UpdateConfig
from rft_jax.data.tokenizers import load as tokenizers
from rft_jax.distributed.mesh import make_mesh
from rft_jax.errors import ModelError
from rft_jax.hub import load as importing
from rft_jax.hub.families import model_of
from rft_jax.observe import log as metrics
from rft_jax.rollout import log as rollout_log
from rft_jax.runs import run as loop
from rft_jax.runs.run import RunResult
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.state import make_layout

VOCAB = 800
"""More rows than the tokenizer has pieces."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the manner of Qwen2.5-Instruct, in bfloat16 and several shards."""
    folder = tmp_path_factory.mktemp("published") / "qwen"
    torch, transformers = reference_models.torch, reference_models.transformers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference_tokenizers.qwen(folder)
        small = {path.name: path.read_bytes() for path in folder.iterdir()}
        end = json.loads(small["config.json"])["eos_token_id"]
        config = transformers.Qwen2Config(
            **reference_models.SHAPE | {"vocab_size": VOCAB, "eos_token_id": end}
        )
        torch.manual_seed(0)
        model = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="40KB")
    generation = small["generation_config.json"]
    (folder / "generation_config.json").write_bytes(generation)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def sft_from(folder: Path, source: str) -> Config:
    """SFT on chats from the model in a folder."""
    start, base = f"hf:{folder}", tiny_experiment.sft(source)
    return replace(
        base,
        init_from=start,
        data=DataConfig(
            train=source, validation=source, prompt_format="chat", system="Add.",
            prompt_template="{question}", max_prompt_tokens=64, max_completion_tokens=12,
        ),
        tokenizer=TokenizerConfig(path=start),
        model=model_of(start),
        update=UpdateConfig(
            row_length=76, rows_per_microbatch=8, sequences_per_step=8, logits_at_once=2**16
        ),
        evaluation=replace(base.evaluation, every_steps=0),
    )  # fmt: skip


def experiment_from(folder: Path, source: str) -> dict[str, Config]:
    sft = sft_from(folder, source)
    online = tiny_experiment.online_rft(source)
    adapters = replace(sft.model, lora_rank=2, lora_alpha=4.0, lora_targets=("value", "down"))
    return {
        "sft": sft,
        "online_rft": replace(
            online, steps=2, data=sft.data, tokenizer=sft.tokenizer, model=sft.model,
            evaluation=sft.evaluation,
            update=replace(sft.update, sequences_per_step=0),
        ),
        "adapters": replace(sft, model=adapters, steps=3),
    }  # fmt: skip


def start_of(config: Config, workdir: Path) -> Start:
    optimizer = make_optimizer(config.optimizer, config.steps)
    layout = make_layout(config.model, make_mesh(config.mesh), optimizer, VOCAB)
    return load_start(config, workdir, layout)


@pytest.mark.slow
def test_from_a_published_model_through_sft_to_online_rft(published: Path, tmp_path: Path) -> None:
    experiment = experiment_from(published, tiny_experiment.write_questions(tmp_path))
    # What a run needs afterwards it keeps: the model itself may go.
    gone = shutil.copytree(published, tmp_path / "gone")
    source = replace(
        experiment["sft"], init_from=f"hf:{gone}", tokenizer=TokenizerConfig(path=f"hf:{gone}")
    )
    experiment = {
        name: replace(config, tokenizer=source.tokenizer) for name, config in experiment.items()
    } | {"sft": source}
    work = tmp_path / "work"
    for name, config in experiment.items():
        assert loop.run(name, experiment, work) == RunResult(config.steps, True)
    values = [
        line["objective/value"] for line in metrics.read(work / "sft/metrics.jsonl")
        if line["kind"] == "train"
    ]  # fmt: skip
    assert values[-1] > values[0] + 1
    shutil.rmtree(gone)
    tokenizer = policies.load_tokenizer(work / "online_rft")
    ends, prompts = set(), set()
    for question, sample in rollout_log.read_folders([str(work / "online_rft/rollouts")]):
        prompts.add(question.text)
        if sample.finished:
            ends.add(sample.tokens[-1])
            assert sample.text == tokenizer.decode(sample.tokens[:-1])
    assert ends <= set(tokenizer.eos_ids)
    assert ends
    raw = json.loads((published / "config.json").read_text())
    for name in experiment:
        assert policies.published_config(work / name) == raw
        kept = policies.load_tokenizer(work / name)
        assert kept.eos_ids == tokenizers.load(published).eos_ids
        assert kept.encode("3 + 4") == tokenizers.load(published).encode("3 + 4")


@pytest.mark.slow
def test_a_run_of_chats_knows_the_end_of_a_turn(published: Path, tmp_path: Path) -> None:
    """Of a base model with a template it is neither the tokenizer's EOS nor in a list of ids."""
    base = Path(shutil.copytree(published, tmp_path / "base"))
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["eos_token"] = "<|endoftext|>"
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    (base / "generation_config.json").write_text('{"eos_token_id": 600}')
    config = sft_from(base, tiny_experiment.write_questions(tmp_path))
    config = replace(config, steps=3)
    assert loop.run("sft", {"sft": config}, tmp_path / "work") == RunResult(3, True)
    run = tmp_path / "work" / "sft"
    kept = json.loads((run / "policy" / "generation_config.json").read_text())
    assert kept["eos_token_id"] == [602, 600]
    assert policies.load_tokenizer(run).special[602] == "<|im_end|>"


@pytest.mark.slow
def test_the_start_is_the_published_weights(published: Path, tmp_path: Path) -> None:
    """As masters; and, under adapters, in the compute type."""
    config = sft_from(published, tiny_experiment.write_questions(tmp_path))
    files = [load_file(path) for path in sorted(published.glob("*.safetensors"))]
    held: dict[str, Any] = {name: array for file in files for name, array in file.items()}
    whole = start_of(config, tmp_path)
    assert whole.frozen == {}
    embedding = np.asarray(whole.trained["embedding"])
    assert embedding.dtype == np.float32
    np.testing.assert_array_equal(embedding, held["model.embed_tokens.weight"].astype(np.float32))
    model = replace(
        config.model, compute_dtype="bfloat16", lora_rank=2, lora_alpha=4.0, lora_targets=("up",)
    )
    frozen, trained = start_of(replace(config, model=model), tmp_path)
    up = np.asarray(frozen["blocks"]["mlp"]["up"])
    for layer in range(config.model.num_layers):
        np.testing.assert_array_equal(up[layer], held[f"model.layers.{layer}.mlp.up_proj.weight"])
    assert [leaf.dtype for leaf in jax.tree.leaves(trained)] == [np.float32] * 2
    assert not np.any(trained["blocks"]["mlp"]["up_b"])


@pytest.mark.slow
def test_adapters_know_the_weights_they_stand_on(published: Path, tmp_path: Path) -> None:
    """A run that starts from theirs must find the same."""
    folder = shutil.copytree(published, tmp_path / "model")
    config = sft_from(folder, tiny_experiment.write_questions(tmp_path))
    model = replace(config.model, lora_rank=2, lora_alpha=4.0, lora_targets=("up",))
    config = replace(config, model=model)
    run = tmp_path / "work" / "lora"
    checkpoints.write_run(run.parent, "lora", config)
    further = replace(config, init_from="run:lora")
    digests = of_weights(folder, {})
    older = json.dumps({Path(one.where).name: one.sha256 for one in digests.values()})
    (run / "policy" / "weights.json").write_text(older)
    content = json.loads((run / "config.json").read_text())
    del content["inputs"], content["id"]
    (run / "config.json").write_text(json.dumps(content))  # as versions up to 0.1.0 recorded them
    first = start_of(further, run.parent)
    provenance.record_inputs(run, digests, 0)
    (run / "policy" / "weights.json").unlink()
    again = start_of(further, run.parent)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    shard = sorted(folder.glob("*.safetensors"))[-1]
    arrays = {name: -array for name, array in load_file(shard).items()}
    save_file(arrays, shard, metadata={"format": "pt"})
    with pytest.raises(ModelError) as error:
        start_of(further, run.parent)
    assert str(error.value) == (
        f"{shard}: it holds other weights than those that the adapters of {run} were trained on: "
        "restore the file, or name the revision that it was of."
    )


# Folders that cannot serve.


def rewrite(path: Path, **changes: Any) -> None:
    """Keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


def truncate(folder: Path) -> str:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    return rf"{shard}: cannot be read as safetensors \(.*\): copy or download it again\."


def misplace(folder: Path) -> str:
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    name, shards = "model.norm.weight", sorted(set(places.values()))
    other = next(shard for shard in shards if shard != places[name])
    rewrite(index, weight_map=places | {name: other})
    return rf"{index}: .*{name}.*: copy or download the folder again\."


def without_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return rf"{folder}: there is neither tokenizer.json nor tokenizer.model: .*"


def of_another_architecture(folder: Path) -> str:
    rewrite(folder / "config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"])
    return r".*config.json: model_type is 'gpt2', and these can be served: llama, .*"


def with_nan(folder: Path) -> str:
    shard = sorted(folder.glob("*.safetensors"))[-1]
    arrays = load_file(shard)
    name = sorted(arrays)[0]
    arrays[name] = arrays[name].copy()
    arrays[name].flat[3] = np.nan
    save_file(arrays, shard, metadata={"format": "pt"})
    return rf"{shard}: tensor {name} is nan at \[.*\], and finite numbers are expected: .*"


def of_another_shape(folder: Path) -> str:
    rewrite(folder / "config.json", intermediate_size=48)
    return r".*model.mlp_dim is 40, expected 48; .*"


def as_pickle(folder: Path) -> str:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    return r".*but pytorch_model.bin, a pickle, which can run any code: .*"


def not_there(folder: Path) -> str:
    shutil.rmtree(folder)
    return rf"hf:{folder}: there is no such folder, .*"


DAMAGE = (
    truncate, misplace, without_tokenizer, of_another_architecture, with_nan, of_another_shape,
    as_pickle, not_there,
)  # fmt: skip


@pytest.fixture
def _as_before() -> Iterator[None]:
    """The command line sets up logging."""
    package, root = logging.getLogger("rft_jax"), logging.getLogger()
    level, handlers = package.level, [*root.handlers]
    yield
    package.setLevel(level)
    root.handlers[:] = handlers


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_folder_that_cannot_serve_is_one_line_before_device_work(
    damage: Callable[[Path], str],
    published: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def put(*_: Any) -> None:
        raise AssertionError("weights were put on a device")

    monkeypatch.setattr(importing, "load_params", put)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    folder = shutil.copytree(published, tmp_path / "model")
    source = tiny_experiment.write_questions(tmp_path)
    config = sft_from(folder, source)
    expected = damage(folder)
    monkeypatch.setattr(cli.experiments, "load", lambda path: {"sft": config})
    assert cli.main(["run", "x.py", "--workdir", str(tmp_path / "work")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    found = captured.err.splitlines()
    assert len(found) == 1, captured.err
    assert re.fullmatch(f"rft-jax: error: {expected}", found[0]), found[0]
    assert not list((tmp_path / "work/sft/checkpoints").glob("*"))
