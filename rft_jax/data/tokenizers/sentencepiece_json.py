"""SentencePiece BPE models in the format of the `tokenizers` library.

SentencePiece joins, again and again, the two neighbours whose joint piece has the best score; the
library's BPE takes the best of a list of pairs. The pairs are all ways to part a piece in two, by
the score of the piece. Where two ways to make the same piece overlap in a text, SentencePiece takes
the left one and the library the one that is earlier in the list; no trained model was found to come
to such a choice, so that the ids are the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rft_jax.data.tokenizers.sentencepiece_model import SPACE_MARK, SentencePiece
from rft_jax.errors import ModelError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = range(1, 5)
"""Kinds of pieces."""


def hf_files(tokenizer: SentencePiece) -> dict[str, str]:
    """The JSON files, by name, of a Hugging Face folder with the same tokenizer.

    Of three texts transformers makes something else: it takes U+2581 for a space, names of special
    tokens for them unless `split_special_tokens` is set, and, when it decodes bytes that are no
    UTF-8, gives every byte of their row a U+FFFD, also where some are a character. Raises
    ModelError for a model that the format cannot hold.
    """
    model = tokenizer.processor.serialized_model_proto()
    names = tokenizer.special
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[tokenizer.prefix_ids[0]],
        "eos_token": names[tokenizer.eos_id],
        "unk_token": names[tokenizer.processor.unk_id()],
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.processor.pad_id() >= 0:
        config["pad_token"] = names[tokenizer.pad_id]
    return {
        "tokenizer.json": json.dumps(tokenizer_json(model, tokenizer.path), ensure_ascii=False),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2),
    }


def tokenizer_json(model: bytes, path: Path, *, prefix_every_part: bool = True) -> dict[str, Any]:
    """tokenizer.json of a serialised SentencePiece model.

    path: for messages; prefix_every_part: a dummy prefix stands before every part of a text between
    special tokens, not before the first alone. Raises ModelError for what the library cannot
    do as SentencePiece does.
    """
    proto = parsed(model, path)
    pieces, trainer = proto.pieces, proto.trainer_spec
    _check_kind(proto, path)
    added = [
        {
            "id": token,
            "content": piece.piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, piece in enumerate(pieces)
        if piece.type in (_UNKNOWN, _CONTROL)
    ]
    whole = [piece.piece for piece in pieces if piece.type == _USER_DEFINED]
    has_prefix = bool(proto.normalizer_spec.add_dummy_prefix)
    normalizers: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    ]
    splits: list[dict[str, Any]] = []
    if has_prefix and prefix_every_part:
        normalizers.insert(0, {"type": "Prepend", "prepend": SPACE_MARK})
    elif has_prefix:
        splits.append(
            {
                "type": "Metaspace",
                "replacement": SPACE_MARK,
                "prepend_scheme": "first",
                "split": False,
            }
        )
    if whole:
        # SentencePiece cuts these out before it joins anything. The library then takes every part
        # that is a piece as it stands, which names of special tokens and bytes must not be.
        splits += [_split(_any_of(whole)), _split(_first_letters_of(_not_text(pieces)))]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if has_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits} if splits else None,
        "post_processor": _puts_in_front(trainer.bos_piece, trainer.bos_id),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": trainer.unk_piece,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": bool(trainer.byte_fallback),
            "ignore_merges": bool(whole),
            "vocab": {piece.piece: token for token, piece in enumerate(pieces)},
            "merges": _merges(pieces),
        },
    }


def parsed(model: bytes, path: Path) -> Any:
    """The fields of a serialised model, as protobuf gives them."""
    # Imported here: start-up needs neither. The second makes its classes when it is imported.
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2
    proto = messages.ModelProto()
    try:
        proto.ParseFromString(model)
    except DecodeError:
        proto.Clear()
    if not proto.pieces:
        raise ModelError(
            f"{path}: no SentencePiece model ({len(model)} bytes): copy or download it again."
        )
    return proto


def _check_kind(proto: Any, path: Path) -> None:
    text, trainer = proto.normalizer_spec, proto.trainer_spec
    kind = trainer.ModelType.Name(trainer.model_type)
    obstacles = {
        f"a {kind} model": kind != "BPE",
        f"normalised by {text.name}": bool(text.precompiled_charsmap),
        "one that folds spaces": text.remove_extra_whitespaces,
        "one that leaves spaces as they are": not text.escape_whitespaces,
        "one with spaces at the ends of words": trainer.treat_whitespace_as_suffix,
        "one without BOS": trainer.bos_id < 0,
    }
    for obstacle, there in obstacles.items():
        if there:
            raise ModelError(
                f"{path}: the SentencePiece model is {obstacle}, which cannot be turned into a "
                "tokenizer.json here: use a BPE model with BOS, normalization_rule_name=identity "
                "and remove_extra_whitespaces=false, or a folder that has a tokenizer.json."
            )


def _merges(pieces: Any) -> list[list[str]]:
    """All ways to make a normal piece of two, the best piece first."""
    scores = {piece.piece: piece.score for piece in pieces if piece.type == _NORMAL}
    return [
        [piece[:cut], piece[cut:]]
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def _not_text(pieces: Any) -> list[str]:
    """Names of pieces that a text never becomes."""
    return [piece.piece for piece in pieces if piece.type not in (_NORMAL, _USER_DEFINED)]


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _any_of(names: Sequence[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


def _first_letters_of(names: Sequence[str]) -> str:
    """Matches the first letter of a part that is one of the names and nothing else."""
    alone = [rf"\A{re.escape(name[0])}(?={re.escape(name[1:])}\z)" for name in names]
    return "|".join(alone)


def _puts_in_front(name: str, token: int) -> dict[str, Any]:
    front = {"SpecialToken": {"id": name, "type_id": 0}}
    text = [{"Sequence": {"id": which, "type_id": 0}} for which in ("A", "B")]
    return {
        "type": "TemplateProcessing",
        "single": [front, text[0]],
        "pair": [front, *text],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }
