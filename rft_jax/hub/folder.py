"""The folder of a published model: on the disk, or downloaded from the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rft_jax.config import DataConfig
from rft_jax.config.serialize import check_value
from rft_jax.data.tokenizers.base import FOLDER_FILES
from rft_jax.errors import ConfigError, ModelError
from rft_jax.io.jsonl import read_json
from rft_jax.io.paths import Folder

PROMPTING = "prompting.json"
"""How the model was asked while it was trained, in a folder that `rft-jax convert` wrote."""

SMALL_FILES = ("config.json", "generation_config.json", PROMPTING, *FOLDER_FILES, "LICENSE")
"""What is downloaded other than weights."""

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")

# Subfolders, and Mistral's second copy of the weights under its own names.
_LEFT_OUT = ("*/*", "consolidated*")

_OF_THE_WHOLE = (
    "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "dtype", "torch_dtype",
    "quantization_config", "transformers_version",
)  # fmt: skip
"""Keys beside text_config that hold for the text half too."""

_REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?")


def locate(target: str, *, weights: bool = True) -> Path:
    """The folder of a published model, downloaded into the hub's cache if it is a repository.

    Args:
        target: what follows `hf:`, a folder or `ORG/NAME[@REVISION]`.
        weights: False leaves the weights out of a download.

    Raises ModelError when there is no such folder or repository.
    """
    folder = Path(os.path.expanduser(target))
    if target and folder.is_dir():
        return folder
    match = _REPOSITORY.fullmatch(target)
    if match is None or folder.is_file():
        raise ModelError(
            f"hf:{target}: there is no such folder, and it is no ORG/NAME or ORG/NAME@REVISION of "
            "the Hugging Face hub: fix the name."
        )
    from huggingface_hub import snapshot_download

    with _downloading(target):
        downloaded = snapshot_download(
            match["name"],
            revision=match["revision"],
            allow_patterns=[*SMALL_FILES, *(WEIGHT_FILES if weights else ())],
            ignore_patterns=list(_LEFT_OUT),
        )
    return Path(downloaded)


@contextmanager
def _downloading(target: str) -> Iterator[None]:
    """Makes what the hub's client raises, of many types, one ModelError."""
    from huggingface_hub import errors

    away = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
    reasons: tuple[tuple[Any, str], ...] = (
        (
            errors.GatedRepoError,
            "the hub gives this model only to those who accepted its licence: accept it on its "
            "page, then run `hf auth login` or set HF_TOKEN",
        ),
        (
            errors.RevisionNotFoundError,
            "the repository has no such revision: name a branch, a tag or a commit of it",
        ),
        (
            errors.RepositoryNotFoundError,
            "there is no such folder, and no such repository that this machine may read: fix the "
            "name, or for a private one run `hf auth login` or set HF_TOKEN",
        ),
        (errors.HFValidationError, "no name that a repository can have: fix the name"),
        (
            away,
            "there is no such folder, it is not in the cache, and the hub cannot be reached: "
            "download it where there is a network, and name the folder",
        ),
    )
    try:
        yield
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        other = f"downloading failed ({first[:200]}): try again, or name a folder that has it"
        reason = next((reason for kind, reason in reasons if isinstance(error, kind)), other)
        raise ModelError(f"hf:{target}: {reason}.") from error


def raw_config(folder: Folder) -> dict[str, Any]:
    """config.json of a model's folder, as `text_half` gives it."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{path}: there is no such file: name the folder of a model in the Hugging Face format."
        )
    return text_half(read_json(path))


def text_half(raw: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a Gemma 3 that also sees images as that of the text-only model in it, which is
    what is served and written; any other as it is."""
    inner = raw.get("text_config")
    whole = raw.get("architectures") in (None, ["Gemma3ForConditionalGeneration"])
    if not whole or raw.get("model_type") != "gemma3" or not isinstance(inner, dict):
        return dict(raw)
    kept = {key: raw[key] for key in _OF_THE_WHOLE if key in raw}
    names = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    return {**inner, **kept, **names}


def prompting_of(start: str) -> dict[str, Any]:
    """How an exported model was asked while it was trained, as fields of DataConfig; of other
    models nothing is known, {}.

    start: `hf:` and a folder, or ORG/NAME[@REVISION] of the hub.
    """
    path = locate(start.removeprefix("hf:"), weights=False) / PROMPTING
    if not path.is_file():
        return {}
    saved = read_json(path)
    fields: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()
    }
    try:
        for name, value in fields.items():
            check_value(f"data.{name}", value)
        return DataConfig(train="", validation="", **fields).prompting
    except (ConfigError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: it does not say how a question is put ({error}): convert the run again, or "
            "delete the file."
        ) from error


def require_fresh(folder: Path) -> None:
    """Raise ModelError for a file, and for a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(
            f"{folder}: it is no empty folder, and nothing is written over: name a new one."
        )
