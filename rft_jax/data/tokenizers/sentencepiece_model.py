"""SentencePiece models: training, loading, and a round trip that loses nothing."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import sentencepiece

from rft_jax.data.tokenizers.base import Tokenizer, check_round_trip, check_utf8
from rft_jax.errors import ModelError
from rft_jax.io.paths import Folder, folder_of, make, write_atomically

PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)
"""Special ids of the models trained here."""

SPACE_MARK = "\u2581"
"""How SentencePiece writes a space."""

_SILENT = 2
"""SentencePiece's log level: errors only (they are raised as well)."""

_LONGEST_TEXT = 2**20
"""Bytes; SentencePiece leaves longer texts out of training without a word."""


@dataclass(frozen=True, eq=False)
class SentencePiece(Tokenizer):
    """marks_as_bytes: a text's own U+2581 goes as bytes, since the piece would come back as a
    space. With a dummy prefix it does not: what follows would get a space in front."""

    processor: sentencepiece.SentencePieceProcessor = field(repr=False)
    marks_as_bytes: bool

    def _encode(self, text: str, *, marked: bool) -> list[int]:
        if not marked:
            return self._pieces(text)
        ids: dict[str, int] = {name: token for token, name in self.special.items()}
        names = "|".join(re.escape(name) for name in sorted(ids, key=len, reverse=True))
        # Each second part is a special token's name.
        parts = re.split(f"({names})", text)
        of_parts = [[ids[p]] if odd % 2 else self._pieces(p) for odd, p in enumerate(parts)]
        return [token for part in of_parts for token in part]

    def _pieces(self, text: str) -> list[int]:
        if not self.marks_as_bytes:
            return self.processor.encode(text)
        first, *others = text.split(SPACE_MARK)
        ids = self.processor.encode(first)
        for part in others:
            ids += [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
            ids += self.processor.encode(part)
        return ids

    def _decode(self, ids: list[int]) -> str:
        return self.processor.decode(ids)


def load_model(path: Folder) -> SentencePiece:
    """The tokenizer of a `.model` file. Raises ModelError when it cannot serve."""
    if path.suffix == ".json" and path.is_file():
        raise ModelError(
            f"{path}: a file of a Hugging Face folder: name the folder in tokenizer.path."
        )
    try:
        model = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path}: cannot read the tokenizer ({error.strerror}): name a SentencePiece .model "
            "file, a Hugging Face folder or hf:ORG/NAME in tokenizer.path, or train one with "
            "tokenizer.corpus."
        ) from None
    return _tokenizer(path, model)


def train(texts: Iterable[str], path: str | Folder, vocab_size: int) -> SentencePiece:
    """Train a tokenizer on texts, write it to `path` atomically, and return it.

    Byte-pair merges within words, digits apart, no normalisation, byte fallback. The same texts
    give the same file. Raises ModelError when the texts do not fill, or do not fit into,
    `vocab_size` pieces (256 byte pieces and 4 special ones among them).
    """
    path = folder_of(path)
    corpus = list(texts)
    for text in corpus:
        check_utf8(path, text)
    if not any(corpus):
        raise ModelError(f"{path}: cannot train a tokenizer: tokenizer.corpus holds no text.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            required_chars=SPACE_MARK,  # a space in bytes would come back as its mark
            max_sentence_length=_LONGEST_TEXT,
            pad_id=PAD_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            minloglevel=_SILENT,
        )
    except RuntimeError as error:
        raise ModelError(f"{path}: {_training_failure(str(error), vocab_size)}") from None
    tokenizer = _tokenizer(path, model.getvalue())
    make(path.parent)
    write_atomically(path, model.getvalue())
    return tokenizer


def _training_failure(message: str, vocab_size: int) -> str:
    setting = f"tokenizer.vocab_size is {vocab_size}"
    if found := re.search(r"too high .*<= (\d+)", message):
        return f"{setting}: the corpus yields {found[1]} pieces at most; set it to {found[1]}."
    if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return (
            f"{setting}: the corpus's characters need {found[1]} pieces; set it above {found[1]}."
        )
    return f"cannot train a tokenizer with {setting}: {' '.join(message.split())}"


def _tokenizer(path: Folder, model: bytes) -> SentencePiece:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)
        if processor.vocab_size() == 0:  # an empty file
            raise RuntimeError
    except RuntimeError:
        raise ModelError(
            f"{path}: no SentencePiece model ({len(model)} bytes): copy it again, or delete it to "
            "train a new one."
        ) from None
    for name, token in (("BOS", processor.bos_id()), ("EOS", processor.eos_id())):
        if token < 0:
            raise ModelError(
                f"{path}: the model has no {name} piece: prompts begin with BOS and outputs end "
                "with EOS; use a model that has both."
            )
    size = processor.vocab_size()
    special = [i for i in range(size) if processor.is_control(i) or processor.is_unknown(i)]
    has_prefix = processor.normalize("a") != "a"
    has_bytes = processor.is_byte(processor.piece_to_id("<0x00>"))
    tokenizer = SentencePiece(
        path=path,
        vocab_size=size,
        prefix_ids=(processor.bos_id(),),
        eos_ids=(processor.eos_id(),),
        pad_id=max(processor.pad_id(), 0),
        unk_id=processor.unk_id(),
        special={token: processor.id_to_piece(token) for token in special},
        chat_template=None,
        processor=processor,
        marks_as_bytes=has_bytes and not has_prefix,
    )
    check_round_trip(tokenizer)
    return tokenizer
