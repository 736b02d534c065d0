"""SentencePiece models: training, loading, and a round trip that loses nothing."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import sentencepiece

from rft_jax.data.tokenizers.base import Tokenizer, check_round_trip, check_utf8
from rft_jax.data.tokenizers.from_sentencepiece import SPACE_MARK, any_of, convert, no_model
from rft_jax.errors import ModelError
from rft_jax.io.paths import Folder, folder_of, make, write_new

PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)
"""Special ids of the models trained here."""

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
        # Each second part is a special token's name.
        parts = enumerate(re.split(f"({any_of(list(ids))})", text))
        of_parts = ([ids[part]] if odd % 2 else self._pieces(part) for odd, part in parts)
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

    def files(self) -> dict[str, bytes]:
        """Of three texts transformers makes something else: it takes U+2581 for a space, names of
        special tokens for them unless `split_special_tokens` is set, and, when it decodes bytes
        that are no UTF-8, gives every byte of their row a U+FFFD, also where some are a character.
        Raises ModelError for a model that the format cannot hold."""
        model = self.processor.serialized_model_proto()
        config: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.special[self.prefix_ids[0]],
            "eos_token": self.special[self.eos_id],
            "unk_token": self.special[self.processor.unk_id()],
            "clean_up_tokenization_spaces": False,
        }
        if self.processor.pad_id() >= 0:
            config["pad_token"] = self.special[self.pad_id]
        return {
            "tokenizer.json": convert(model, self.path).to_str().encode(),
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2).encode(),
            "tokenizer.model": model,
        }


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
    """Train a tokenizer on texts, write it to `path` unless another process has, and return it.

    Byte-pair merges within words, digits apart, no normalisation, byte fallback. The same texts
    give the same file.

    Args:
        vocab_size: pieces, 256 byte pieces and 4 special ones among them.

    Raises ModelError when the texts do not fill, or do not fit into, `vocab_size` pieces.
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
    write_new(path, model.getvalue())  # another job beside this one may have been first
    return tokenizer


def _training_failure(message: str, vocab_size: int) -> str:
    setting = f"tokenizer.vocab_size is {vocab_size}"
    if most := re.search(r"too high .*<= (\d+)", message):
        return f"{setting}: the corpus yields {most[1]} pieces at most; set it to {most[1]}."
    if least := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return (
            f"{setting}: the corpus's characters need {least[1]} pieces; set it above {least[1]}."
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
            f"{path}: {no_model(model, 'copy it again, or delete it to train a new one')}."
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
