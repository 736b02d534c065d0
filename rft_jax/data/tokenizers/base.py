"""Tokenizers: what everything else knows of one.

There are two kinds: a SentencePiece model, among them those trained here (sentencepiece_model.py),
and the folder of a published model in the Hugging Face format (huggingface.py).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rft_jax.data.chat import ChatTemplate
from rft_jax.errors import ModelError
from rft_jax.io.paths import Folder

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
"""What a folder's tokenizer is read from: the first of them that is there."""

FOLDER_FILES = (
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""All files of a Hugging Face folder that belong to its tokenizer."""

PROBE = "a  b\n#### 1"
"""Must survive a round trip: a tokenizer that folds spaces or newlines would change solutions."""


@dataclass(frozen=True, eq=False)
class Tokenizer(abc.ABC):
    """Text to token ids and back. Made by `load`.

    path: the file or folder it was read from; vocab_size: its ids lie in [0, vocab_size);
    prefix_ids: what stands before every text prompt; eos_ids: an output ends with any of them;
    pad_id: fills shapes (masks come from lengths, so that any id will do); unk_id: stands for
    characters without an id, if there is one; special: the ids that are no text, by their names;
    before_eos: what stands between a demonstration's text and its EOS (data/prompts.with_ends).
    """

    path: Folder
    vocab_size: int
    prefix_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    pad_id: int
    unk_id: int | None
    special: Mapping[int, str] = field(repr=False)
    chat_template: ChatTemplate | None = field(repr=False)
    before_eos: tuple[int, ...] = field(default=(), kw_only=True)

    @property
    def eos_id(self) -> int:
        """The id that demonstrations end with."""
        return self.eos_ids[0]

    @property
    def marks(self) -> Mapping[int, str]:
        """The ids that can end a turn, by their names: special, or added to the vocabulary."""
        return self.special

    def encode(self, text: str) -> list[int]:
        """The ids of a text that is data: names of special tokens in it are letters like others.

        Raises ModelError for what has no ids.
        """
        check_utf8(self.path, text)
        ids = self._encode(text, marked=False)
        if self.unk_id in ids:
            raise ModelError(
                f"{self.path}: cannot encode {shown(text)}: a character of it has no piece; use a "
                "model with byte fallback."
            )
        return ids

    def encode_marked(self, text: str) -> list[int]:
        """The ids of a text in which names of special tokens stand for them: a rendered chat."""
        check_utf8(self.path, text)
        return self._encode(text, marked=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD.

        Special ids vanish, and so do those beyond the vocabulary, which a model whose embedding has
        more rows may sample. Raises ModelError for negative ones.
        """
        for token in ids:
            if token < 0:
                raise ModelError(
                    f"{self.path}: cannot decode id {token}: its ids are 0 to "
                    f"{self.vocab_size - 1}; use the tokenizer that the model was trained with."
                )
        known = [int(token) for token in ids if token < self.vocab_size]
        return self._decode([token for token in known if token not in self.special])

    @abc.abstractmethod
    def files(self) -> dict[str, bytes]:
        """The files, by name, that give transformers and `load` this tokenizer.

        What generation_config.json and config.json say of further EOS ids belongs to the model:
        whoever writes those files takes `eos_ids`.
        """

    @abc.abstractmethod
    def _encode(self, text: str, *, marked: bool) -> list[int]:
        """The ids of text that UTF-8 can hold."""

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """The text of ids in the vocabulary, none of them special."""


def check_round_trip(tokenizer: Tokenizer) -> None:
    """ModelError for a tokenizer that folds spaces or newlines."""
    returned = tokenizer.decode(tokenizer.encode(PROBE))
    if returned != PROBE:
        raise ModelError(
            f"{tokenizer.path}: the model turns {PROBE!r} into {returned!r}: use one that keeps "
            "spaces and newlines (normalization_rule_name=identity, "
            "remove_extra_whitespaces=false)."
        )


def check_utf8(path: Folder, text: str) -> None:
    """ModelError for half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ModelError(
            f"{path}: cannot encode {shown(text)}: character {error.start} is half of a surrogate "
            "pair, which UTF-8 cannot hold; fix the text."
        ) from None


def shown(text: str) -> str:
    """A text as an error message quotes it."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
