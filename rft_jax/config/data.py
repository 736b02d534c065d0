"""Where questions and the tokenizer come from."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import Any, Literal

from rft_jax.config.fields import at_least, named_sources, require

_TEMPLATES = {"text": "{question}\n", "chat": "{question}"}
"""Of prompts, by their format: a chat's template ends the message."""

PROMPTING = (
    "prompt_format", "prompt_template", "system", "date", "template_variables", "stop_tokens",
)  # fmt: skip
"""Fields that decide how a question is put and where its output ends."""

_OF_TEMPLATE = ("messages", "add_generation_prompt", "strftime_now", "raise_exception")
"""What a chat template reads and no setting changes."""

_PYTHON = {"True": True, "False": False, "None": None}


@dataclass(frozen=True)
class DataConfig:
    """Where questions come from. A source is `tfds:NAME/SPLIT`, `jsonl:PATH` or
    `reasoning_gym:NAME?size=N&seed=N`, each with an optional slice of rows such as `[:7000]` or
    `[7000:]`."""

    train: str
    """Questions to train on; for SFT they must carry solutions (demonstrations)."""
    validation: str
    """Questions evaluated while training; choose settings on these."""
    test: str = ""
    """Questions evaluated once, when the run ends; empty for none. Never tune on these."""
    more_validation: tuple[str, ...] = ()
    """Further sets evaluated with data.validation, each NAME=SOURCE; their metrics are NAME/..."""
    more_test: tuple[str, ...] = ()
    """Further sets evaluated with data.test, likewise. Never tune on these."""
    data_dir: str = ""
    """Folder of prepared TFDS data; empty for TFDS's own default (~/tensorflow_datasets)."""
    prompt_format: Literal["text", "chat"] = "text"
    """text: the model continues the prompt; chat: the prompt is the user's message, and the chat
    template of the tokenizer's folder asks for the answer."""
    prompt_template: str = ""
    """Text of the prompt, in a chat of the user's message; `{question}` is replaced by the
    question. Empty: `{question}` and a newline, in a chat `{question}`."""
    system: str = ""
    """System message of a chat; empty for none."""
    date: str = ""
    """Date given to a chat template that asks for one, YYYY-MM-DD; other templates ignore it."""
    template_variables: tuple[str, ...] = ()
    """Variables of a chat template, each NAME=VALUE, such as `enable_thinking=false`. VALUE is
    JSON; what is no JSON is a text."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens, by their names, that end an output beside EOS and a chat's end of turn."""
    max_prompt_tokens: int = 128
    """Longest prompt in tokens."""
    max_completion_tokens: int = 128
    """Longest output in tokens, EOS included; sampling stops there."""
    drop_too_long: bool = False
    """Leave out questions whose prompt, or demonstration, exceeds these, and count them in the
    metrics; otherwise one such question is an error before any work is done."""

    def __post_init__(self) -> None:
        require(
            self.template.count("{question}") == 1,
            f"data.prompt_template is {self.prompt_template!r}: it must hold {{question}} once.",
        )
        for name in ("system", "date", "template_variables"):
            require(
                self.prompt_format == "chat" or not getattr(self, name),
                f"data.{name} does nothing under data.prompt_format={self.prompt_format}: remove "
                "it or set data.prompt_format to chat.",
            )
        require(
            not self.date or _is_date(self.date),
            f"data.date is {self.date!r}: a date is expected, YYYY-MM-DD.",
        )
        names = [one.partition("=")[0] for one in self.template_variables]
        for name, one in zip(names, self.template_variables, strict=True):
            require(
                "=" in one and name.isidentifier() and names.count(name) == 1,
                f"data.template_variables holds {one!r}: NAME=VALUE is expected, each name once.",
            )
            require(
                name not in _OF_TEMPLATE,
                f"data.template_variables sets {name}, which prompts set themselves: remove it.",
            )
        at_least(1, self, "max_prompt_tokens", "max_completion_tokens")
        for name in ("more_validation", "more_test"):
            named_sources(f"data.{name}", getattr(self, name))
        require(
            bool(self.test) or not self.more_test,
            "data.more_test is evaluated with data.test, which is empty: name its source too.",
        )

    @property
    def template(self) -> str:
        """data.prompt_template, or what the format has in its place."""
        return self.prompt_template or _TEMPLATES[self.prompt_format]

    @property
    def variables(self) -> dict[str, Any]:
        """data.template_variables by name."""
        pairs = (one.split("=", 1) for one in self.template_variables)
        return {name: _value(text) for name, text in pairs}

    @property
    def prompting(self) -> dict[str, Any]:
        """Everything that decides how a question is put and where its output ends."""
        values = {name: getattr(self, name) for name in PROMPTING}
        return values | {"prompt_template": self.template}

    def message(self, question: str) -> str:
        """The prompt that asks a question, in a chat the user's message; other braces mean
        nothing."""
        return self.template.replace("{question}", question, 1)


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
            at_least(0, self, "vocab_size")


def _value(text: str) -> Any:
    if text in _PYTHON:  # as one who writes Python would have it
        return _PYTHON[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
