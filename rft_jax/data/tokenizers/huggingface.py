"""The tokenizer of a published model: a folder in the Hugging Face format."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import tokenizers

from rft_jax.data.tokenizers.base import (
    FOLDER_FILES,
    TOKENIZER_FILES,
    Tokenizer,
    check_round_trip,
)
from rft_jax.data.tokenizers.folder_settings import (
    CONFIG_FILE,
    FolderSettings,
    NamedToken,
    read_settings,
)
from rft_jax.data.tokenizers.from_sentencepiece import convert, parsed
from rft_jax.data.tokenizers.growth import growth
from rft_jax.errors import ModelError
from rft_jax.io.jsonl import parse
from rft_jax.io.paths import Folder

_OTHERS = {
    "tekken.json": "a format that only Mistral uses (a newer revision may have a tokenizer.json)",
    "vocab.json": "the older format of BPE (transformers' AutoTokenizer reads it, and its "
    "save_pretrained writes a tokenizer.json)",
    "vocab.txt": "WordPiece, which loses spaces",
    "*.tiktoken": "a vocabulary of tiktoken, without its pattern of words",
    "*.model": "a SentencePiece model of another name (name this file)",
    "*.gguf": "the format of llama.cpp (take the repository that it was made from)",
}
"""Tokenizers that are not read, by the names of their files."""

_MOST_GROWTH = 1000
"""Characters that the steps of a tokenizer.json may make of one."""

_RARE = "\U0001fad9"
"""A character that is too young and too rare for a piece of its own."""


@dataclass(frozen=True, eq=False)
class HuggingFace(Tokenizer):
    """backend: does not look for names of special tokens in a text."""

    backend: tokenizers.Tokenizer = field(repr=False)

    @property
    def marks(self) -> Mapping[int, str]:
        """Special or not; runs of spaces or newlines, as Gemma adds them, are text."""
        added = self.backend.get_added_tokens_decoder()
        return {t: one.content for t, one in added.items() if one.special or one.content.strip()}

    def _encode(self, text: str, *, marked: bool) -> list[int]:
        backend = _marked(self.backend) if marked else self.backend
        return backend.encode(text, add_special_tokens=False).ids

    def _decode(self, ids: list[int]) -> str:
        return self.backend.decode(ids, skip_special_tokens=False)

    def files(self) -> dict[str, bytes]:
        """Those of the folder, as they are."""
        paths = [self.path / name for name in FOLDER_FILES]
        return {path.name: path.read_bytes() for path in paths if path.is_file()}


@functools.lru_cache(maxsize=2)
def _marked(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A second one, since looking for names or not is a state of the first."""
    return tokenizers.Tokenizer.from_str(backend.to_str())


def load_folder(folder: Folder) -> HuggingFace:
    """The tokenizer of a folder: of its tokenizer.json, or else of SentencePiece's tokenizer.model.

    Special tokens, the chat template and whether BOS begins a text are what the folder's other JSON
    files say. An output ends with the EOS of tokenizer_config.json, or with one that
    generation_config.json and config.json name. Raises ModelError when it cannot serve.
    """
    source = next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)
    if source is None:
        others = ((sorted(folder.glob(name)), what) for name, what in _OTHERS.items())
        held = next((f" but {paths[0].name}, {what}" for paths, what in others if paths), "")
        raise ModelError(
            f"{folder}: there is neither {' nor '.join(TOKENIZER_FILES)}{held}: name the folder of "
            "a model in the Hugging Face format, or a .model file."
        )
    settings = read_settings(folder)
    if source.suffix == ".json":
        backend = _from_json(source)
    else:
        model = source.read_bytes()
        settings = _with_roles_of_model(settings, parsed(model, source).trainer_spec)
        backend = convert(model, source, prefix_every_part=settings.prefix_every_part)
    backend.no_truncation()
    backend.no_padding()
    _add_tokens(backend, folder, settings)
    backend.encode_special_tokens = True
    ids = backend.get_vocab(with_added_tokens=True)
    pad = settings.roles.get("pad_token")
    tokenizer = HuggingFace(
        path=folder,
        vocab_size=max(ids.values()) + 1,
        prefix_ids=_prefix_ids(backend, source, settings),
        eos_ids=_eos_ids(ids, folder, settings),
        pad_id=ids.get(pad.name, 0) if pad else 0,
        unk_id=ids.get(getattr(backend.model, "unk_token", None) or ""),
        special={
            token: added.content
            for token, added in backend.get_added_tokens_decoder().items()
            if added.special
        },
        chat_template=settings.chat_template,
        backend=backend,
    )
    check_round_trip(tokenizer)
    if tokenizer.decode(tokenizer.encode(_RARE)) != _RARE:
        raise ModelError(
            f"{folder}: the tokenizer has no ids for {_RARE!r} and loses such characters: use one "
            "with byte fallback, or one of bytes."
        )
    return tokenizer


def _from_json(path: Folder) -> tokenizers.Tokenizer:
    try:
        text = path.read_text(encoding="utf-8-sig")
        times = growth(parse(text))
        if times <= _MOST_GROWTH:
            return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more special
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: no tokenizer ({reason}): copy or download it again.") from error
    raise ModelError(
        f"{path}: its steps make up to {times:,} characters of one, and {_MOST_GROWTH:,} are "
        "allowed: a published tokenizer makes a few; download it again from who made it."
    )


def _with_roles_of_model(settings: FolderSettings, spec: Any) -> FolderSettings:
    """SentencePiece's own special tokens, where the folder's files name no other."""
    of_model = {
        "bos_token": (spec.bos_id, spec.bos_piece),
        "eos_token": (spec.eos_id, spec.eos_piece),
        "unk_token": (spec.unk_id, spec.unk_piece),
    }
    roles = {role: NamedToken(name, {}) for role, (token, name) in of_model.items() if token >= 0}
    roles |= settings.roles
    template = settings.chat_template
    if template is not None:
        template = replace(template, names={role: token.name for role, token in roles.items()})
    # A dummy prefix is part of normalising, and a name that is searched for must not get one.
    added = {
        token: NamedToken(named.name, {**named.flags, "normalized": False})
        for token, named in settings.added.items()
    }
    return replace(settings, roles=roles, added=added, chat_template=template)


def _add_tokens(backend: tokenizers.Tokenizer, folder: Folder, settings: FolderSettings) -> None:
    """Add the tokens that the other files name, and see to it that they have the ids they name."""
    for token, named in sorted(settings.added.items()):
        backend.add_tokens([tokenizers.AddedToken(named.name, **named.flags)])
        known = backend.token_to_id(named.name)
        if known != token:
            raise ModelError(
                f"{folder}: {named.name!r} has id {known} in the vocabulary and {token} in "
                f"{CONFIG_FILE} or added_tokens.json: download the folder again."
            )
    special = {one.content for one in backend.get_added_tokens_decoder().values() if one.special}
    for named in (*settings.roles.values(), *settings.also_special):
        if named.name not in special and backend.token_to_id(named.name) is not None:
            flags = {"normalized": False, **named.flags, "special": True}
            backend.add_special_tokens([tokenizers.AddedToken(named.name, **flags)])


def _prefix_ids(
    backend: tokenizers.Tokenizer, source: Folder, settings: FolderSettings
) -> tuple[int, ...]:
    """What the post-processor puts in front; else BOS, where add_bos_token asks for it.

    Without a tokenizer.json the post-processor is made here, and add_bos_token can forbid it.
    """
    if source.suffix != ".json" and settings.adds_bos is False:
        return ()
    encoded = backend.encode("a", add_special_tokens=True)
    pairs = zip(encoded.ids, encoded.special_tokens_mask, strict=True)
    front = tuple(token for token, _ in itertools.takewhile(lambda pair: pair[1], pairs))
    if front or not settings.adds_bos:
        return front
    bos = settings.roles.get("bos_token")
    token = backend.token_to_id(bos.name) if bos else None
    if token is None:
        raise ModelError(
            f"{source.parent / CONFIG_FILE}: add_bos_token is true and bos_token is "
            f"{bos.name if bos else None!r}, which has no id: fix the file or download it again."
        )
    return (token,)


def _eos_ids(ids: Mapping[str, int], folder: Folder, settings: FolderSettings) -> tuple[int, ...]:
    ends: list[int] = []
    eos = settings.roles.get("eos_token")
    if eos is not None:
        if eos.name not in ids:
            raise ModelError(
                f"{folder}: eos_token is {eos.name!r}, which has no id: fix {CONFIG_FILE} or "
                "download the folder again."
            )
        ends.append(ids[eos.name])
    size = max(ids.values()) + 1
    for file, token in settings.also_ends:
        if token >= size:
            raise ModelError(
                f"{file}: eos_token_id is {token} and the tokenizer's ids are 0 to {size - 1}: "
                "fix the file or download the folder again."
            )
        ends.append(token)
    if not ends:
        raise ModelError(
            f"{folder}: no file names an EOS, and outputs end with it: add eos_token to "
            f"{CONFIG_FILE}."
        )
    return tuple(dict.fromkeys(ends))
