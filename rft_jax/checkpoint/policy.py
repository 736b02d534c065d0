"""A checkpoint as the host knows it: which policy it is, before anything is on a device. No jax.

Either the folder of a finished run, or a published model: a folder in the Hugging Face format or a
repository of the hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from rft_jax.checkpoint import integrity as checkpoint_health
from rft_jax.checkpoint import policy_files
from rft_jax.checkpoint.provenance import load_config
from rft_jax.config import Config, DataConfig, ModelConfig
from rft_jax.data.tokenizers import load as tokenizers
from rft_jax.data.tokenizers.base import Tokenizer
from rft_jax.errors import UserError
from rft_jax.hub.families import model_config
from rft_jax.hub.folder import locate, raw_config, read_json
from rft_jax.io.paths import Folder, folder_of, in_bucket

ComputeDtype = Literal["float32", "bfloat16"]

MAX_NEW_TOKENS = 512
"""Longest output of a published model, unless another length is asked for."""
TEMPLATES = {"text": "{question}\n", "chat": "{question}"}
"""Of prompts, by their format."""

_CONFIG = "config.json"
_BEST = "best"
_WHICH = re.compile(rf"@(?:[0-9]+|{_BEST})$")


@dataclass(frozen=True)
class Policy:
    """A checkpoint that was found.

    name: as it was asked for; init_from: what a run that starts from it would say; folder: with
    config.json; model: with its adapters, and vocab_size the rows of the embedding; raw: of the
    published model that it is or goes back to, config.json, None where there is none; config: of
    the run, None for a published model; step: of the checkpoint that was named, None for a run's
    last one.
    """

    name: str
    init_from: str
    folder: Folder
    model: ModelConfig
    tokenizer: Tokenizer
    raw: Mapping[str, Any] | None
    config: Config | None
    step: int | None = None

    @property
    def max_positions(self) -> int | None:
        """Tokens of the longest text that a published model says it is made for."""
        stated = (self.raw or {}).get("max_position_embeddings")
        return stated if isinstance(stated, int) else None

    @property
    def data(self) -> DataConfig:
        """How questions are put to it, unless otherwise is asked for: as in its run; to a published
        model, as a chat if its tokenizer has a template for them."""
        if self.config is not None:
            return self.config.data
        prompt_format: Literal["text", "chat"] = "chat" if self.tokenizer.chat_template else "text"
        return DataConfig(
            train="",
            validation="",
            prompt_format=prompt_format,
            prompt_template=TEMPLATES[prompt_format],
            max_completion_tokens=MAX_NEW_TOKENS,
        )


def find(target: str, compute_dtype: ComputeDtype | None = None) -> Policy:
    """The policy of a checkpoint: WORKDIR/RUN, a WORKDIR with a single run, either with @STEP or
    @best if it is not the last step's, a folder in the Hugging Face format, or `hf:PATH_OR_REPO`,
    whose weights are not downloaded yet.

    compute_dtype: None for the run's, or for the type of a published model's weights. Raises
    UserError when there is no such policy, and what its parts raise when they are damaged.
    """
    if target.startswith("hf:"):
        folder = locate(target.removeprefix("hf:"), weights=False)
        return _published(target, target, folder, compute_dtype)
    folder, which = folder_of(os.path.expanduser(target)), ""
    if not folder.exists() and _WHICH.search(target):
        start, _, which = target.rpartition("@")
        folder = folder_of(os.path.expanduser(start))
    if not folder.is_dir():
        found = "a file" if folder.exists() else "missing"
        raise UserError(
            f"{target}: the checkpoint is {found}: name the folder of a finished run "
            "(WORKDIR/RUN) or of a model in the Hugging Face format, or hf:ORG/NAME of the hub."
        )
    if not (folder / _CONFIG).is_file():
        folder = _only_run(folder)
    if _is_run(folder):
        return _run(target, folder, compute_dtype, which)
    if which:
        raise UserError(
            f"{target}: {folder} is no run but a model in the Hugging Face format, which has no "
            f"steps: leave out @{which}."
        )
    if in_bucket(folder):
        raise UserError(f"{target}: a published model is read from a disk: copy it there.")
    return _published(target, f"hf:{folder}", folder, compute_dtype)


def _published(
    name: str, init_from: str, folder: Folder, compute_dtype: ComputeDtype | None
) -> Policy:
    raw = raw_config(folder)
    if compute_dtype is None:
        stated = raw.get("dtype", raw.get("torch_dtype"))
        compute_dtype = stated if stated in get_args(ComputeDtype) else "float32"
    model = model_config(raw, str(folder / _CONFIG), compute_dtype=compute_dtype)
    tokenizer = tokenizers.load(folder)
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} pieces and vocab_size in "
            f"{_CONFIG} is {model.vocab_size}: use the model's own tokenizer."
        )
    return Policy(name, init_from, folder, model, tokenizer, raw, None)


def _run(name: str, folder: Folder, compute_dtype: ComputeDtype | None, which: str) -> Policy:
    config = load_config(folder)
    if not (folder / "finished.json").is_file():
        raise UserError(
            f"{folder}: this run is not finished: carry it out first; the same `rft-jax run` goes "
            "on with it."
        )
    if not (folder / policy_files.FOLDER).is_dir():
        raise UserError(
            f"{folder}: the run has no folder {policy_files.FOLDER} with its tokenizer: copy the "
            "whole folder of the run."
        )
    tokenizer = policy_files.load_tokenizer(folder)
    model = replace(
        config.model,
        vocab_size=config.model.vocab_size or tokenizer.vocab_size,
        compute_dtype=compute_dtype or config.model.compute_dtype,
    )
    raw = policy_files.published_config(folder)
    step = _step(folder / "checkpoints", which) if which else None
    if which:  # what was the best may change
        name = f"{name.removesuffix(which)}{step}"
    return Policy(name, f"workdir:{folder}", folder, model, tokenizer, raw, config, step)


def _step(checkpoints: Folder, which: str) -> int:
    """The step that @STEP or @best means; UserError when it has no checkpoint."""
    if which == _BEST:
        return checkpoint_health.best(checkpoints)
    steps = checkpoint_health.steps(checkpoints)
    if int(which) not in steps:
        raise UserError(
            f"{checkpoints}: no checkpoint of step {which} is kept here: name one of "
            f"{', '.join(map(str, steps)) or 'none'}, or @{_BEST}."
        )
    return int(which)


def _only_run(workdir: Folder) -> Folder:
    """The run in a workdir that has one; UserError for none and for several."""
    runs = sorted(path.parent for path in workdir.glob(f"*/{_CONFIG}") if _is_run(path.parent))
    if len(runs) == 1:
        return runs[0]
    if runs:
        names = [
            run.name if (run / "finished.json").is_file() else f"{run.name} (not finished)"
            for run in runs
        ]
        raise UserError(
            f"{workdir} holds {len(runs)} runs, {', '.join(names)}: name one of them, such as "
            f"{runs[0]}."
        )
    held = sorted(path.name for path in workdir.iterdir())
    shown = ", ".join(held[:8]) + (", ..." if len(held) > 8 else "")
    raise UserError(
        f"{workdir} is no run, no workdir and no model in the Hugging Face format (it has no "
        f"{_CONFIG}; there is {shown or 'nothing in it'}): name a run as WORKDIR/RUN, or a model's "
        "folder."
    )


def _is_run(folder: Folder) -> bool:
    """Whether config.json is that of a run; a published model's has another form."""
    content: dict[str, Any] = read_json(folder / _CONFIG)
    return isinstance(content.get("config"), Mapping) and "model_type" not in content
