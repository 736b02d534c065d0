"""Chat templates: messages to the text that a chat model was trained on.

A template is a Jinja program that came with the model. It runs in Jinja's sandbox, which keeps it
from Python's internals and from changing what it is given, but not from running for ever.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rft_jax.errors import ModelError

if TYPE_CHECKING:
    import jinja2


@dataclass(frozen=True)
class ChatTemplate:
    """text: in Jinja; path: of the file it stands in; names: of special tokens by their role, such
    as `bos_token`, which the template may use."""

    text: str
    path: Path
    names: Mapping[str, str]


def render(template: ChatTemplate, *, system: str, user: str, date: str = "") -> str:
    """The text that asks the model for an answer to the user's message.

    Args:
        system: the message before the user's; empty for none.
        date: what a template that asks for the date is told, YYYY-MM-DD: the clock would give a
            resumed run other prompts.

    Raises ModelError for a template that is no Jinja, that refuses the messages, or that reaches
    for what the sandbox does not give.
    """
    import jinja2

    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    try:
        return _compiled(template.text).render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=True,
            strftime_now=functools.partial(_dated, date),
            **template.names,
        )
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            f"{template.path}: line {error.lineno} of the chat template is no Jinja "
            f"({_line(error)}): download it again or fix it, or set data.prompt_format to text."
        ) from error
    except _NoDate as error:
        raise ModelError(
            f"{template.path}: the chat template asks for the date: set data.date, which stays the "
            "same when a run is resumed."
        ) from error
    except Exception as error:  # whatever an operation of the template raises
        without = "leave data.system empty if it takes no system message, " if system else ""
        raise ModelError(
            f"{template.path}: the chat template cannot be rendered ({_line(error)}): {without}"
            "fix it, or set data.prompt_format to text."
        ) from error


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@functools.lru_cache
def _compiled(text: str) -> jinja2.Template:
    # Imported here: it takes a fifth of a second, and text prompts need none of it.
    from jinja2 import ext, nodes, parser, sandbox
    from jinja2.exceptions import TemplateError

    class Generation(ext.Extension):
        """`{% generation %}`, which marks the answers in a dialogue and leaves them as they are."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: parser.Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own is for web pages and escapes <, >, & and quotes. The template chooses no more
        # of json.dumps than this: its `default` and `cls` would be called.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent,
                          separators=separators, sort_keys=sort_keys)  # fmt: skip

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(text)


class _NoDate(Exception):
    """A template asked for a date that is not given."""


def _dated(date: str, form: str) -> str:
    if not date:
        raise _NoDate
    return datetime.fromisoformat(date).strftime(form)
