"""Where questions and the tokenizer come from."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Literal

from rft_jax.config.fields import at_least, require


@dataclass(frozen=True)
class DataConfig:
    """Where questions come from. A source is `tfds:NAME/SPLIT` or `jsonl:PATH`, either with an
    optional slice of rows such as `[:7000]` or `[7000:]`."""

    train: str
    """Questions to train on; for SFT they must carry solutions (demonstrations)."""
    validation: str
    """Questions evaluated while training; choose settings on these."""
    test: str = ""
    """Questions evaluated once, when the run ends; empty for none. Never tune on these."""
    data_dir: str = ""
    """Folder of prepared TFDS data; empty for TFDS's own default (~/tensorflow_datasets)."""
    prompt_format: Literal["text", "chat"] = "text"
    """text: the model continues the prompt; chat: the prompt is the user's message, and the chat
    template of the tokenizer's folder asks for the answer."""
    prompt_template: str = "{question}\n"
    """Text of the prompt; `{question}` is replaced by the question. In a chat, whose template ends
    the message, `{question}` is enough."""
    system: str = ""
    """System message of a chat; empty for none."""
    date: str = ""
    """Date given to a chat template that asks for one, YYYY-MM-DD; other templates ignore it."""
    max_prompt_tokens: int = 128
    """Longest prompt in tokens."""
    max_completion_tokens: int = 128
    """Longest output in tokens, EOS included; sampling stops there."""
    drop_too_long: bool = False
    """Leave out questions whose prompt, or demonstration, exceeds these, and count them in the
    metrics; otherwise one such question is an error before any work is done."""

    def __post_init__(self) -> None:
        require(
            self.prompt_template.count("{question}") == 1,
            f"data.prompt_template is {self.prompt_template!r}: it must hold {{question}} once.",
        )
        for name in ("system", "date"):
            require(
                self.prompt_format == "chat" or not getattr(self, name),
                f"data.{name} does nothing under data.prompt_format={self.prompt_format}: remove "
                "it or set data.prompt_format to chat.",
            )
        require(
            not self.date or _is_date(self.date),
            f"data.date is {self.date!r}: a date is expected, YYYY-MM-DD.",
        )
        at_least(1, self, "max_prompt_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class TokenizerConfig:
    """A published model's tokenizer, or a SentencePiece model, loaded or trained on the
    experiment's demonstrations."""

    path: str = ""
    """A Hugging Face folder, `hf:PATH` or `hf:ORG/NAME[@REVISION]` of the hub, or a SentencePiece
    `.model` file; empty: WORKDIR/tokenizer.model, trained when it is missing."""
    corpus: str = ""
    """Source the tokenizer is trained on (questions and solutions); only with an empty path."""
    vocab_size: int = 0
    """Pieces to train, special and byte pieces included; only with an empty path."""

    def __post_init__(self) -> None:
        require(
            self.path != "hf:",
            "tokenizer.path is 'hf:': a folder or ORG/NAME must follow it.",
        )
        if self.path:
            require(
                not self.corpus and not self.vocab_size,
                "tokenizer.corpus and tokenizer.vocab_size train a new tokenizer and do nothing "
                "beside tokenizer.path: remove them or the path.",
            )
        else:
            require(
                bool(self.corpus),
                "tokenizer.path and tokenizer.corpus are both empty: name a tokenizer or a source "
                "to train one on.",
            )
            require(
                self.vocab_size > 260,
                f"tokenizer.vocab_size is {self.vocab_size}: it must exceed 260 (256 byte pieces "
                "and 4 special ones).",
            )


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
