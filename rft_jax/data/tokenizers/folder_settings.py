"""What the JSON files of a Hugging Face folder say of its tokenizer; tokenizer.json apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rft_jax.data.chat import ChatTemplate
from rft_jax.errors import ModelError
from rft_jax.io.jsonl import read_json
from rft_jax.io.paths import Folder

CONFIG_FILE = "tokenizer_config.json"

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class NamedToken:
    """A token as the files write it. flags: how text is searched for it, where they say so."""

    name: str
    flags: Mapping[str, bool]


@dataclass(frozen=True)
class FolderSettings:
    """roles: special tokens such as `bos_token`; added: tokens by the ids they must have;
    also_special: special tokens without a role; also_ends: further ids that end an output, by the
    file that names them; adds_bos: None where the files leave it open; prefix_every_part: see
    from_sentencepiece.convert."""

    roles: Mapping[str, NamedToken]
    added: Mapping[int, NamedToken]
    also_special: tuple[NamedToken, ...]
    also_ends: tuple[tuple[Folder, int], ...]
    adds_bos: bool | None
    prefix_every_part: bool
    chat_template: ChatTemplate | None


def read_settings(folder: Folder) -> FolderSettings:
    """The settings of a folder; files that are not there say nothing.

    Raises ModelError for a file that is damaged.
    """
    path = folder / CONFIG_FILE
    config, others = _read(path), _read(folder / "special_tokens_map.json")
    decoder = config.get("added_tokens_decoder") or {}
    _expect(decoder, dict, path, "added_tokens_decoder", "an object")
    added = {
        _number(token, path, "added_tokens_decoder"): _token(value, path, "added_tokens_decoder")
        for token, value in decoder.items()
    }
    # The older format: the other file has the last word, and ids stand in a file of their own.
    merged = others | config if added else config | others
    roles = {
        f"{role}_token": _token(value, path, f"{role}_token")
        for role in _ROLES
        if (value := merged.get(f"{role}_token")) is not None
    }
    special = []
    for field in ("additional_special_tokens", "extra_special_tokens"):
        values = _expect(merged.get(field), (list, dict), path, field, "a list") or []
        values = values.values() if isinstance(values, dict) else values
        special += [_token(value, path, field) for value in values]
    if not added:
        known = {token.name for token in (*roles.values(), *special)}
        older = folder / "added_tokens.json"
        added = {
            _number(token, older, name): NamedToken(
                name, {"special": name in known, "normalized": name not in known}
            )
            for name, token in _read(older).items()
        }
    ends = []
    for file in (folder / "generation_config.json", folder / "config.json"):
        ids = _read(file).get("eos_token_id")
        ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
        ends += [(file, _number(token, file, "eos_token_id")) for token in ids]

    def flag(field: str) -> bool | None:
        switch: bool | None = _expect(config.get(field), bool, path, field, "true or false")
        return switch

    names = {role: token.name for role, token in roles.items()}
    return FolderSettings(
        roles=roles,
        added=added,
        also_special=tuple(special),
        also_ends=tuple(ends),
        adds_bos=flag("add_bos_token"),
        prefix_every_part=flag("legacy") is not False,
        chat_template=_chat_template(folder, config, names),
    )


def _read(path: Folder) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _expect(value: Any, kinds: Any, path: Folder, field: str, expected: str) -> Any:
    """The value, or None; ModelError when it is of none of the kinds."""
    if value is not None and not isinstance(value, kinds):
        raise _wrong(value, path, field, expected)
    return value


def _wrong(value: object, path: Folder, field: str, expected: str) -> ModelError:
    return ModelError(
        f"{path}: {field} is {json.dumps(value)[:60]}, expected {expected}: fix the file or "
        "download it again."
    )


def _token(value: Any, path: Folder, field: str) -> NamedToken:
    """A token as text, or as an object with its text and flags."""
    if isinstance(value, str):
        return NamedToken(value, {})
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise _wrong(value, path, field, "a token or an object with its content")
    return NamedToken(value["content"], {f: bool(value[f]) for f in _FLAGS if f in value})


def _number(value: Any, path: Folder, field: str) -> int:
    if value.isdecimal() if isinstance(value, str) else type(value) is int and value >= 0:
        return int(value)
    raise _wrong(value, path, field, "an id, 0 or more")


def _chat_template(
    folder: Folder, config: Mapping[str, Any], names: Mapping[str, str]
) -> ChatTemplate | None:
    """The template, of several named ones the default, from the first file that has one."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), path, names)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{path}: cannot be read ({error}): copy or download it again."
            ) from error
    text: Any = config.get("chat_template")
    path = folder / CONFIG_FILE
    if text is None:
        path = folder / "chat_template.json"
        text = _read(path).get("chat_template")
    if isinstance(text, list):
        named = [one for one in text if isinstance(one, dict) and one.get("name") == "default"]
        text = named[0].get("template") if named else text
    _expect(text, str, path, "chat_template", "a template, or a list with one named default")
    return None if text is None else ChatTemplate(text, path, names)
