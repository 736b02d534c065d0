"""RUN/policy: what a run's parameters need to be used without the run's sources.

`sentencepiece.model`, or the tokenizer files of a published model; and, of a run that goes back to
a published model, that model's config.json and generation_config.json.
"""

from __future__ import annotations

import json
from typing import Any

from rft_jax.config import Config
from rft_jax.data.tokenizers import load as tokenizers
from rft_jax.data.tokenizers.base import Tokenizer
from rft_jax.data.tokenizers.export import tokenizer_files
from rft_jax.data.tokenizers.sentencepiece_model import SentencePiece
from rft_jax.hub.folder import locate, raw_config, read_json
from rft_jax.hub.raw_config import generation_config
from rft_jax.io.paths import Folder, folder_of, make, write_atomically

FOLDER = "policy"
_CONFIG, _GENERATION, _MODEL = "config.json", "generation_config.json", "sentencepiece.model"


def keep(config: Config, workdir: Folder, run: Folder, tokenizer: Tokenizer) -> None:
    """Write RUN/policy; a resumed run writes the same again."""
    folder = run / FOLDER
    make(folder)
    if isinstance(tokenizer, SentencePiece):
        files: dict[str, bytes] = {_MODEL: tokenizer.processor.serialized_model_proto()}
    else:
        files = tokenizer_files(tokenizer)
    published = _published(config, workdir)
    if published is not None:
        generation = generation_of(published, tokenizer)
        for name, raw in ((_CONFIG, raw_config(published)), (_GENERATION, generation)):
            files[name] = (json.dumps(raw, indent=2, ensure_ascii=False) + "\n").encode()
    for name, content in files.items():
        write_atomically(folder / name, content)


def _published(config: Config, workdir: Folder) -> Folder | None:
    """The folder with config.json of the published model that a run goes back to, if it does."""
    kind, _, target = config.init_from.partition(":")
    if kind == "hf":
        return locate(target, weights=False)
    folder = (workdir / target if kind == "run" else folder_of(target)) / FOLDER
    return folder if kind in ("run", "workdir") and (folder / _CONFIG).is_file() else None


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
