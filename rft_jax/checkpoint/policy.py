"""Opens any checkpoint, before anything is on a device: which policy it is. No jax.

Either a checkpoint of a run, finished, stopped or at work, or a published model: a folder in the
Hugging Face format or a repository of the hub. A run keeps in RUN/policy what its parameters need
to be used without the run's sources: `sentencepiece.model`, or the tokenizer files of a published
model; when it goes back to a published model, that model's config.json and generation_config.json;
and when it starts from another run, start.json, the step of it: {"init_from": str, "step": int}.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from rft_jax.checkpoint import integrity
from rft_jax.checkpoint.provenance import check_policy, load_config
from rft_jax.config import Config, DataConfig, ModelConfig
from rft_jax.data.tokenizers import load as tokenizers
from rft_jax.data.tokenizers.base import Tokenizer
from rft_jax.data.tokenizers.sentencepiece_model import SentencePiece
from rft_jax.errors import CheckpointError, ConfigError, UserError
from rft_jax.hub.families import model_config
from rft_jax.hub.folder import locate, prompting_of, raw_config
from rft_jax.hub.raw_config import generation_config
from rft_jax.io.jsonl import read_json
from rft_jax.io.paths import Folder, folder_of, in_bucket, make, write_atomically

logger = logging.getLogger(__name__)

ComputeDtype = Literal["float32", "bfloat16"]

MAX_NEW_TOKENS = 512
"""Longest output of a published model, unless another length is asked for."""

FOLDER = "policy"
"""In a run's folder, what is kept of its policy other than parameters."""

_CONFIG, _GENERATION, _MODEL = "config.json", "generation_config.json", "sentencepiece.model"
_START = "start.json"
FINISHED = "finished.json"
_UNFINISHED = ", which are not all made yet"
_BEST = "best"
_WHICH = re.compile(rf"@(?:[0-9]+|{_BEST})$")


@dataclass(frozen=True)
class Policy:
    """A checkpoint and what the host knows of it.

    name: as it was asked for, and for a run its step; init_from: what a run that starts from it
    would say; folder: with config.json; model: with its adapters, and vocab_size the rows of the
    embedding; raw: config.json of the published model that it is or goes back to, if any; config,
    step: of the run and its checkpoint, None for a published model.
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
        """How questions are put to it, unless otherwise is asked for: as in its run, also where it
        was exported; to another published model, as a chat if its tokenizer has a template."""
        if self.config is not None:
            return self.config.data
        chat = {"prompt_format": "chat"} if self.tokenizer.chat_template else {}
        return DataConfig(
            train="",
            validation="",
            max_completion_tokens=MAX_NEW_TOKENS,
            **prompting_of(str(self.folder)) or chat,
        )


def find(target: str, compute_dtype: ComputeDtype | None = None) -> Policy:
    """The policy of a checkpoint. Downloads no weights.

    Args:
        target: WORKDIR/RUN or a WORKDIR with a single run, for its last step's checkpoint (of a run
            that is not finished, the newest whole one), either with @STEP or @best for another, a
            folder in the Hugging Face format, or `hf:PATH_OR_REPO`.
        compute_dtype: None for the run's, or for the type of a published model's weights.

    Raises UserError when there is no such policy, and what its parts raise when they are damaged.
    """
    if target.startswith("hf:"):
        folder = locate(target.removeprefix("hf:"), weights=False)
        return _published(target, target, folder, compute_dtype)
    folder, which = _split(folder_of(os.path.expanduser(target)))
    if not folder.is_dir():
        state = "a file" if folder.exists() else "missing"
        raise UserError(
            f"{target}: the checkpoint is {state}: name the folder of a run "
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
    step = _step(folder, which)
    config = load_config(folder)
    if not (folder / FOLDER).is_dir():
        raise UserError(
            f"{folder}: the run has no folder {FOLDER} with its tokenizer: copy the whole folder "
            "of the run."
        )
    check_policy(folder)
    tokenizer = load_tokenizer(folder)
    model = replace(
        config.model,
        vocab_size=config.model.vocab_size or tokenizer.vocab_size,
        compute_dtype=compute_dtype or config.model.compute_dtype,
    )
    raw = published_config(folder)
    name = f"{name.removesuffix(f'@{which}').rstrip('/')}@{step}"
    finished = (folder / FINISHED).is_file()
    logger.info("%s: step %d of %d%s", folder, step, config.steps, "" if finished else _UNFINISHED)
    return Policy(name, f"workdir:{folder}@{step}", folder, model, tokenizer, raw, config, step)


def _split(folder: Folder) -> tuple[Folder, str]:
    """A run's folder, and what stands behind @, empty where nothing does."""
    if not folder.exists() and _WHICH.search(folder.name):
        name, _, which = folder.name.rpartition("@")
        return folder.parent / name, which
    return folder, ""


def _step(run: Folder, which: str) -> int:
    """The step that @STEP or @best means, or a run without them; UserError where it has none."""
    checkpoints = run / "checkpoints"
    if which == _BEST:
        return integrity.best(checkpoints)
    steps = integrity.steps(checkpoints)
    if not steps:
        raise CheckpointError(
            f"{integrity.absolute(checkpoints)}: no checkpoint here; finish the run that makes it."
        )
    if not which:
        if (run / FINISHED).is_file():
            return _final(read_json(run / FINISHED, CheckpointError)) or steps[-1]
        newest = integrity.newest_whole(checkpoints).step
        assert newest is not None, checkpoints
        return newest
    if int(which) not in steps:
        raise UserError(
            f"{checkpoints}: no checkpoint of step {which} is kept here: name one of "
            f"{', '.join(map(str, steps))}, or @{_BEST}."
        )
    return int(which)


def _only_run(workdir: Folder) -> Folder:
    """The run in a workdir that has one; UserError for none and for several."""
    runs = sorted(path.parent for path in workdir.glob(f"*/{_CONFIG}") if _is_run(path.parent))
    if len(runs) == 1:
        return runs[0]
    if runs:
        names = [
            run.name if (run / FINISHED).is_file() else f"{run.name} (not finished)" for run in runs
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


def start_folder(init_from: str, workdir: Folder) -> Folder | None:
    """The folder of the run that `run:NAME` or `workdir:PATH` names, with @STEP, @best or without;
    None for another start."""
    kind, _, target = init_from.partition(":")
    if kind not in ("run", "workdir"):
        return None
    return _split(workdir / target if kind == "run" else folder_of(target))[0]


def start_of(init_from: str, workdir: Folder, run: Folder | None = None) -> tuple[Folder, int]:
    """The folder and the step of the checkpoint that `run:NAME` or `workdir:PATH` names.

    run: that starts from it; the step is then the one that it started from (`keep_start`),
    whatever has become the best, or the last, of the other run since.

    Raises ConfigError where neither a step is named nor the other run finished, and CheckpointError
    where there is no such checkpoint.
    """
    kind, _, target = init_from.partition(":")
    folder, which = _split(workdir / target if kind == "run" else folder_of(target))
    kept = kept_start(init_from, run) if run is not None else None
    if kept is not None:
        return folder, kept
    if not which and not (folder / FINISHED).is_file():
        steps = integrity.steps(folder / "checkpoints")
        saved = f", or start from {init_from}@STEP of {', '.join(map(str, steps))}" if steps else ""
        raise ConfigError(
            f"init_from is {init_from}: {f'run {target}' if kind == 'run' else target} is not "
            f"finished; carry it out first{' (leave out --only)' if kind == 'run' else ''}"
            f"{saved}."
        )
    return folder, _step(folder, which)


def kept_start(init_from: str, run: Folder) -> int | None:
    """The step of another run that this one started from, as RUN/policy says; None where it does
    not."""
    path = run / FOLDER / _START
    content = read_json(path) if path.is_file() else {}
    step = content.get("step")
    return step if content.get("init_from") == init_from and isinstance(step, int) else None


def keep_start(config: Config, workdir: Folder, run: Folder) -> None:
    """Write to RUN/policy which step of another run this one starts from, to be resumed from it."""
    if start_folder(config.init_from, workdir) is None:
        return
    _, step = start_of(config.init_from, workdir, run)
    make(run / FOLDER)
    content = {"init_from": config.init_from, "step": step}
    write_atomically(run / FOLDER / _START, json.dumps(content) + "\n")
    logger.info("%s: starts from step %d of %s", run.name, step, config.init_from)


def _final(finished: Mapping[str, Any]) -> int | None:
    """The step of the checkpoint that a run ended with, where it is not that of its last step."""
    step = finished.get("checkpoint")
    return step if isinstance(step, int) else None


def ended_by(run: Folder) -> str:
    """The alarm that ended a run, as RUN/finished.json says; empty for none."""
    path = run / FINISHED
    return str(read_json(path, CheckpointError).get("alarm", "")) if path.is_file() else ""


def is_finished(run: Folder, config: Config) -> bool:
    """Whether a run has made its steps and its test, or an alarm under the same alarms.* has ended
    it, as RUN/finished.json says.

    Raises CheckpointError when that is damaged, or the checkpoint that it speaks of is.
    """
    path = run / FINISHED
    if not path.is_file():
        return False
    costs = read_json(path, CheckpointError)
    counts = [costs.get(f"cost/{name}") for name in ("updates", "skipped_updates")]
    done = sum(count for count in counts if isinstance(count, int))
    if done != config.steps and costs.get("alarms") != asdict(config.alarms):
        return False  # it was given more steps, or other alarms, since
    last = run / "checkpoints" / str(_final(costs) or done)
    reason = integrity.problem(last, contents=False) if last.is_dir() else "it is missing"
    if reason is not None:
        raise CheckpointError(
            f"{last}: the run ended with this checkpoint, as {path.name} says, and {reason}: bring "
            f"it back, or remove {path} to resume the run."
        )
    return True


def keep(config: Config, workdir: Folder, run: Folder, tokenizer: Tokenizer) -> Mapping[str, bytes]:
    """Write RUN/policy, and return its files; a resumed run writes the same again."""
    folder = run / FOLDER
    make(folder)
    if isinstance(tokenizer, SentencePiece):
        files: dict[str, bytes] = {_MODEL: tokenizer.processor.serialized_model_proto()}
    else:
        files = tokenizer.files()
    published: Folder | None = None
    if config.init_from.startswith("hf:"):
        published = locate(config.init_from.removeprefix("hf:"), weights=False)
    elif start := start_folder(config.init_from, workdir):
        published = start / FOLDER if (start / FOLDER / _CONFIG).is_file() else None
    if published is not None:
        generation = generation_of(published, tokenizer)
        for name, raw in ((_CONFIG, raw_config(published)), (_GENERATION, generation)):
            files[name] = (json.dumps(raw, indent=2, ensure_ascii=False) + "\n").encode()
    for name, content in files.items():
        write_atomically(folder / name, content)
    return files


def load_tokenizer(run: Folder) -> Tokenizer:
    """The tokenizer of a run, from RUN/policy. Raises ModelError when it is not there."""
    folder = run / FOLDER
    model = folder / _MODEL
    return tokenizers.load(model if model.is_file() else folder)


def published_config(run: Folder) -> dict[str, Any] | None:
    """config.json of the published model that a run goes back to; None where it does not."""
    folder = run / FOLDER
    return raw_config(folder) if (folder / _CONFIG).is_file() else None


def generation_of(folder: Folder, tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json for a policy with this tokenizer: the one in `folder`, if there is
    one, with the tokenizer's special ids."""
    path = folder / _GENERATION
    raw = read_json(path) if path.is_file() else {}
    bos = tokenizer.prefix_ids[0] if tokenizer.prefix_ids else raw.get("bos_token_id")
    return generation_config(raw, tokenizer.eos_ids, bos, tokenizer.pad_id)
