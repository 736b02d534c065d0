"""The folder of a published model: on the disk, or downloaded from the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rft_jax.data.tokenizers.base import FOLDER_FILES
from rft_jax.errors import ModelError
from rft_jax.io.jsonl import read_json
from rft_jax.io.paths import Folder

SMALL_FILES = ("config.json", "generation_config.json", *FOLDER_FILES, "LICENSE")
"""What is downloaded other than weights."""

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")

# Subfolders, and Mistral's second copy of the weights under its own names.
_LEFT_OUT = ("*/*", "consolidated*")

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
    """config.json of a model's folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{path}: there is no such file: name the folder of a model in the Hugging Face format."
        )
    return read_json(path)
