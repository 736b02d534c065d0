"""Whether a folder's weights are still those that adapters were trained on."""

from __future__ import annotations

import hashlib
import json

from rft_jax.errors import ModelError
from rft_jax.hub.folder import read_json
from rft_jax.hub.weights import Weights
from rft_jax.io.paths import Folder


def digests(weights: Weights) -> dict[str, str]:
    """SHA-256 of every file of weights, by its name. Reads everything once."""
    files = sorted({header.file for header in weights.headers.values()})
    found = {}
    for file in files:
        with file.open("rb") as content:
            found[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def check_record(weights: Weights, record: Folder) -> None:
    """Raise ModelError when the files are not those of `record`."""
    if digests(weights) != read_json(record):
        raise ModelError(
            f"{weights.folder}: its weights are other than those that the adapters of "
            f"{record.parent.parent} were trained on: restore the files, or name the revision they "
            "were of."
        )


def written(weights: Weights) -> str:
    """The content of a record."""
    return json.dumps(digests(weights), indent=2) + "\n"
