"""SentencePiece BPE models as tokenizers of the `tokenizers` library.

SentencePiece joins, again and again, the two neighbours whose joint piece has the best score; the
library's BPE takes the best of a list of pairs. The pairs are all ways to part a piece in two, by
the score of the piece. Where two ways to make the same piece overlap in a text, SentencePiece takes
the left one and the library the one that is earlier in the list; no trained model was found to come
to such a choice, so that the ids are the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from rft_jax.errors import ModelError
from rft_jax.io.paths import Folder

SPACE_MARK = "\u2581"
"""How SentencePiece writes a space."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = range(1, 5)
"""Kinds of pieces."""


def convert(model: bytes, path: Folder, *, prefix_every_part: bool = True) -> Tokenizer:
    """The same tokenizer of the library.

    Args:
        model: a serialised SentencePiece model.
        path: of its file, for messages.
        prefix_every_part: put the dummy prefix of a model that has one before every part of a text
            between special tokens, rather than only before the first.

    Raises ModelError for what the library cannot do as SentencePiece does.
    """
    proto = parsed(model, path)
    pieces, trainer = proto.pieces, proto.trainer_spec
    _check_kind(proto, path)
    has_prefix = bool(proto.normalizer_spec.add_dummy_prefix)
    whole = [piece.piece for piece in pieces if piece.type == _USER_DEFINED]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece.piece: token for token, piece in enumerate(pieces)},
            merges=_merges(pieces),
            unk_token=trainer.unk_piece,
            fuse_unk=True,
            byte_fallback=bool(trainer.byte_fallback),
            ignore_merges=bool(whole),
        )
    )
    special = [piece.piece for piece in pieces if piece.type in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    normalizing: list[Any] = [normalizers.Replace(" ", SPACE_MARK)]
    splits: list[Any] = []
    if has_prefix and prefix_every_part:
        normalizing.insert(0, normalizers.Prepend(SPACE_MARK))
    elif has_prefix:
        splits.append(pre_tokenizers.Metaspace(SPACE_MARK, prepend_scheme="first", split=False))
    if whole:
        # SentencePiece cuts these out before it joins anything. The library then takes every part
        # that is a piece as it stands, which names of special tokens and bytes must not be.
        no_text = [piece.piece for piece in pieces if piece.type not in (_NORMAL, _USER_DEFINED)]
        for pattern in (any_of(whole), _first_letters_of(no_text)):
            splits.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    decoding: list[Any] = [
        decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse(),
    ]  # fmt: skip
    if has_prefix:
        decoding.append(decoders.Strip(" ", left=1, right=0))
    tokenizer.normalizer = normalizers.Sequence(normalizing)
    if splits:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    bos = trainer.bos_piece
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, trainer.bos_id)]
    )
    tokenizer.decoder = decoders.Sequence(decoding)
    return tokenizer


def parsed(model: bytes, path: Folder) -> Any:
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
        raise ModelError(f"{path}: {no_model(model, 'copy or download it again')}.")
    return proto


def no_model(content: bytes, remedy: str) -> str:
    """The end of a message on a file that is no SentencePiece model, and that no tool can fix by
    `remedy` if it is a vocabulary of tiktoken."""
    if re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", content):
        return (
            "a vocabulary of tiktoken (Llama 3's original format), without its pattern of words: "
            "name the folder of the model in the Hugging Face format, which has a tokenizer.json "
            "(it is the one that the folder `original` lies in)"
        )
    return f"no SentencePiece model ({len(content)} bytes): {remedy}"


def _check_kind(proto: Any, path: Folder) -> None:
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
    for obstacle, present in obstacles.items():
        if present:
            raise ModelError(
                f"{path}: the SentencePiece model is {obstacle}, which cannot be turned into a "
                "tokenizer.json here: use a BPE model with BOS, normalization_rule_name=identity "
                "and remove_extra_whitespaces=false, or a folder that has a tokenizer.json."
            )


def _merges(pieces: Any) -> list[tuple[str, str]]:
    """All ways to make a normal piece of two, the best piece first."""
    scores = {piece.piece: piece.score for piece in pieces if piece.type == _NORMAL}
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def any_of(names: Sequence[str]) -> str:
    """A pattern of any of these names, the longest of those that fit."""
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


def _first_letters_of(names: Sequence[str]) -> str:
    """Matches the first letter of a part that is one of the names and nothing else."""
    return "|".join(rf"\A{re.escape(name[0])}(?={re.escape(name[1:])}\z)" for name in names)
