"""What the JSON files of a Hugging Face folder say of its tokenizer, besides tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rft_jax.data.chat import ChatTemplate
from rft_jax.errors import ModelError
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
    sentencepiece_json.tokenizer_json."""

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
    config = _read(path)
    others = _read(folder / "special_tokens_map.json")
    added = {
        _number(token, path, "added_tokens_decoder"): _token(value, path, "added_tokens_decoder")
        for token, value in _mapping(config, "added_tokens_decoder", path).items()
    }
    # The older format: the other file has the last word, and ids stand in a file of their own.
    merged = others | config if added else config | others
    roles = {
        f"{role}_token": _token(value, path, f"{role}_token")
        for role in _ROLES
        if (value := merged.get(f"{role}_token")) is not None
    }
    special = [
        _token(value, path, field)
        for field in ("additional_special_tokens", "extra_special_tokens")
        for value in _values(merged.get(field), path, field)
    ]
    if not added:
        known = {token.name for token in (*roles.values(), *special)}
        added = _older_added_tokens(folder / "added_tokens.json", known)
    ends = [
        (file, token)
        for file in (folder / "generation_config.json", folder / "config.json")
        for token in _ids(_read(file).get("eos_token_id"), file)
    ]
    text, source = _chat_template(folder, config)
    names = {role: token.name for role, token in roles.items()}
    return FolderSettings(
        roles=roles,
        added=added,
        also_special=tuple(special),
        also_ends=tuple(ends),
        adds_bos=_flag(config, "add_bos_token", path),
        prefix_every_part=_flag(config, "legacy", path) is not False,
        chat_template=None if text is None else ChatTemplate(text, source, names),
    )


def _read(path: Folder) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot be read as JSON ({error}): copy or download it again."
        ) from error
    if not isinstance(found, dict):
        raise _wrong(path, "the whole", found, "an object")
    return found


def _wrong(path: Folder, field: str, found: object, expected: str) -> ModelError:
    return ModelError(
        f"{path}: {field} is {json.dumps(found)[:60]}, expected {expected}: mend the file or "
        "download it again."
    )


def _mapping(config: Mapping[str, Any], field: str, path: Folder) -> dict[str, Any]:
    found = config.get(field) or {}
    if not isinstance(found, dict):
        raise _wrong(path, field, found, "an object")
    return found


def _values(found: object, path: Folder, field: str) -> Iterable[object]:
    if isinstance(found, dict):
        return found.values()
    if found is None or isinstance(found, list):
        return found or []
    raise _wrong(path, field, found, "a list")


def _flag(config: Mapping[str, Any], field: str, path: Folder) -> bool | None:
    found = config.get(field)
    if found is not None and not isinstance(found, bool):
        raise _wrong(path, field, found, "true or false")
    return found


def _token(found: object, path: Folder, field: str) -> NamedToken:
    """A token as text, or as an object with its text and flags."""
    if isinstance(found, str):
        return NamedToken(found, {})
    if not isinstance(found, dict) or not isinstance(found.get("content"), str):
        raise _wrong(path, field, found, "a token or an object with its content")
    return NamedToken(found["content"], {f: bool(found[f]) for f in _FLAGS if f in found})


def _number(found: object, path: Folder, field: str) -> int:
    if isinstance(found, str) and found.isdecimal():
        return int(found)
    if isinstance(found, int) and not isinstance(found, bool) and found >= 0:
        return found
    raise _wrong(path, field, found, "an id, 0 or more")


def _ids(found: object, path: Folder) -> list[int]:
    if found is None:
        return []
    values = found if isinstance(found, list) else [found]
    return [_number(value, path, "eos_token_id") for value in values]


def _older_added_tokens(path: Folder, special: set[str]) -> dict[int, NamedToken]:
    return {
        _number(token, path, name): NamedToken(
            name, {"special": name in special, "normalized": name not in special}
        )
        for name, token in _read(path).items()
    }


def _chat_template(folder: Folder, config: Mapping[str, Any]) -> tuple[str | None, Folder]:
    """The template, of several named ones the default, and the file it stands in."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), path
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{path}: cannot be read ({error}): copy or download it again."
            ) from error
    path, found = folder / CONFIG_FILE, config.get("chat_template")
    if found is None:
        path = folder / "chat_template.json"
        found = _read(path).get("chat_template")
    if isinstance(found, list):
        named = [one for one in found if isinstance(one, dict) and one.get("name") == "default"]
        found = named[0].get("template") if named else found
    if found is None or isinstance(found, str):
        return found, path
    raise _wrong(path, "chat_template", found, "a template, or a list with one named default")
