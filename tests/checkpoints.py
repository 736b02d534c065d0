"""Checkpoints that nobody trained: finished runs and a published model, made in no time."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference_models
import reference_tokenizers
import tiny_experiment
from policies import random_policy

from rft_jax.checkpoint import manager as checkpoint
from rft_jax.checkpoint import policy as policies
from rft_jax.checkpoint import provenance
from rft_jax.commands.main import main
from rft_jax.config import Config
from rft_jax.models import adapters
from rft_jax.runs.setup import ensure_tokenizer, vocab_size
from rft_jax.types import Params, TrainState

PUBLISHED_ROWS = 800
"""More than the published model's tokenizer has pieces."""


def write_run(workdir: Path, name: str, config: Config, *, finished: bool = True) -> Params:
    """WORKDIR/NAME as a run of these settings would leave it, with random parameters: these."""
    folder = workdir / name
    folder.mkdir(parents=True)
    tokenizer = ensure_tokenizer(config, workdir)
    params = random_policy(config.model, vocab_size(config.model, tokenizer), seed=config.seed)
    if not config.model.lora_rank:
        # So that about half of the outputs end.
        params["embedding"] = params["embedding"].at[:, 0].set(3.0)
        params["unembedding"] = params["unembedding"].at[tokenizer.eos_id, 0].set(3.0)
    provenance.save_config(folder, name, config, device="cpu", num_devices=8)
    policies.keep(config, workdir, folder, tokenizer)
    _, trained = adapters.split(params, config.model)
    with checkpoint.open_manager(folder / "checkpoints", config.checkpoint) as manager:
        state = TrainState(np.int32(config.steps), trained, ())  # type: ignore[arg-type]
        checkpoint.save(manager, config.steps, checkpoint.Saved(state, {}))
    if finished:
        costs = {"cost/updates": config.steps, "cost/skipped_updates": 0}
        (folder / "finished.json").write_text(json.dumps(costs))
    return params


def with_lora(config: Config, init_from: str) -> Config:
    """SFT of adapters from a run or a published model."""
    model = replace(
        config.model, lora_rank=2, lora_alpha=4.0, lora_targets=("query", "output", "up")
    )
    return replace(config, init_from=init_from, model=model)


def write_published(folder: Path, dtype: str = "float32") -> Path:
    """A chat model in the manner of Qwen2.5-Instruct, in several shards."""
    torch, transformers = reference_models.torch, reference_models.transformers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference_tokenizers.qwen(folder)
        small = {path.name: path.read_bytes() for path in folder.iterdir()}
        end = json.loads(small["config.json"])["eos_token_id"]
        config = transformers.Qwen2Config(
            **reference_models.SHAPE
            | {"vocab_size": PUBLISHED_ROWS, "eos_token_id": end, "tie_word_embeddings": False}
        )
        torch.manual_seed(0)
        model = transformers.Qwen2ForCausalLM(config).to(reference_models.DTYPES[dtype])
        model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "generation_config.json").write_bytes(small["generation_config.json"])
    return folder


@contextmanager
def command_line() -> Iterator[None]:
    """Around calls of cli.main: what it sets up for a process of its own is undone."""
    package, root = logging.getLogger("rft_jax"), logging.getLogger()
    level, handlers = package.level, [*root.handlers]
    yield
    package.setLevel(level)
    root.handlers[:] = handlers


def refusal(capsys: pytest.CaptureFixture[str], command: str, *args: str) -> str:
    """The one line by which a command that asks a checkpoint is refused, beside what it logs."""
    assert main([command, *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("rft-jax: ")]
    assert len(lines) == 1
    return lines[0]


def sft(questions: str) -> Config:
    """tiny_experiment's, seeded anew, so that it is told from defaults."""
    return tiny_experiment.sft(questions, seed=3)
