"""SentencePiece: training, loading, and a round trip that loses nothing."""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece

PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)
"""Special ids of the models trained here."""

_SPACE_MARK = "\u2581"
"""How SentencePiece writes a space; a text's own would come back as one, so it goes as bytes."""

_PROBE = "a  b\n#### 1"
"""Must survive a round trip: a model that folds spaces or newlines would change solutions."""

_SILENT = 2
"""SentencePiece's log level: errors only (they are raised as well)."""

_LONGEST_TEXT = 2**20
"""Bytes; SentencePiece leaves longer texts out of training without a word."""


class TokenizerError(ValueError):
    """A tokenizer cannot be trained, loaded or applied; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to token ids and back: decode(encode(text)) == text for every text UTF-8 can hold.

    path: the `.model` file it was read from. Made by `load` or `train`.
    """

    path: Path
    processor: sentencepiece.SentencePieceProcessor = field(repr=False)

    @property
    def vocab_size(self) -> int:
        """Number of pieces; ids lie in [0, vocab_size)."""
        return self.processor.vocab_size()

    @property
    def bos_id(self) -> int:
        """The id every prompt begins with."""
        return self.processor.bos_id()

    @property
    def eos_id(self) -> int:
        """The id every finished output ends with."""
        return self.processor.eos_id()

    @property
    def pad_id(self) -> int:
        """The id that fills shapes: the model's own, or 0 where it has none (masks come from
        lengths, so that any id will do)."""
        return max(self.processor.pad_id(), 0)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without BOS and EOS. Raises TokenizerError for what has no ids."""
        _check_utf8(self.path, text)
        first, *others = text.split(_SPACE_MARK)
        ids = self.processor.encode(first)
        for part in others:
            ids += [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
            ids += self.processor.encode(part)
        if self.processor.unk_id() in ids:
            raise TokenizerError(
                f"{self.path}: cannot encode {_shown(text)}: a character of it has no piece; use a "
                "model with byte fallback."
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special ones vanish, and bytes that are no UTF-8 become U+FFFD."""
        size = self.vocab_size
        special = {self.pad_id, self.bos_id, self.eos_id, self.processor.unk_id()}
        for token in ids:
            if not 0 <= token < size:
                raise TokenizerError(
                    f"{self.path}: cannot decode id {token}: its ids are 0 to {size - 1}; use the "
                    "tokenizer that the model was trained with."
                )
        # The unknown piece would decode to a question mark, and any would part a character's bytes.
        return self.processor.decode([int(token) for token in ids if token not in special])


def load(path: str | Path) -> Tokenizer:
    """The tokenizer of a `.model` file. Raises TokenizerError when it cannot serve."""
    path = Path(path)
    try:
        model = path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"{path}: cannot read the tokenizer ({error.strerror}): name a SentencePiece .model "
            "file in tokenizer.path, or train one with tokenizer.corpus."
        ) from None
    return _tokenizer(path, model)


def train(texts: Iterable[str], path: str | Path, vocab_size: int) -> Tokenizer:
    """Train a tokenizer on texts, write it to `path` atomically, and return it.

    Byte-pair merges within words, digits apart, no normalisation, byte fallback. The same texts
    give the same file. Raises TokenizerError when the texts do not fill, or do not fit into,
    `vocab_size` pieces (256 byte pieces and 4 special ones among them).
    """
    path = Path(path)
    corpus = list(texts)
    for text in corpus:
        _check_utf8(path, text)
    if not any(corpus):
        raise TokenizerError(f"{path}: cannot train a tokenizer: tokenizer.corpus holds no text.")
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
            required_chars=_SPACE_MARK,  # a space in bytes would come back as its mark
            max_sentence_length=_LONGEST_TEXT,
            pad_id=PAD_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            minloglevel=_SILENT,
        )
    except RuntimeError as error:
        raise TokenizerError(f"{path}: {_training_failure(str(error), vocab_size)}") from None
    tokenizer = _tokenizer(path, model.getvalue())
    _write_atomically(path, model.getvalue())
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


def _tokenizer(path: Path, model: bytes) -> Tokenizer:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)
        if processor.vocab_size() == 0:  # an empty file
            raise RuntimeError
    except RuntimeError:
        raise TokenizerError(
            f"{path}: no SentencePiece model ({len(model)} bytes): copy it again, or delete it to "
            "train a new one."
        ) from None
    for name, token in (("BOS", processor.bos_id()), ("EOS", processor.eos_id())):
        if token < 0:
            raise TokenizerError(
                f"{path}: the model has no {name} piece: prompts begin with BOS and outputs end "
                "with EOS; use a model that has both."
            )
    returned = processor.decode(processor.encode(_PROBE))
    if returned != _PROBE:
        raise TokenizerError(
            f"{path}: the model turns {_PROBE!r} into {returned!r}: use one that keeps spaces and "
            "newlines (normalization_rule_name=identity, remove_extra_whitespaces=false)."
        )
    return Tokenizer(path, processor)


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _check_utf8(path: Path, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"{path}: cannot encode {_shown(text)}: character {error.start} is half of a surrogate "
            "pair, which UTF-8 cannot hold; mend the text."
        ) from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
