"""Renders chat templates, in a process of its own: its time and its memory have a limit.

A template is a Jinja program that came with the model. Jinja's sandbox keeps it from Python's
internals and from changing what it is given, but not from running for ever or filling the memory;
the kernel does. A request and its reply are a line of JSON each.
"""

from __future__ import annotations

import functools
import json
import math
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

SECONDS = 5
"""Processor time that a rendering may take; one of a published template takes under a millisecond.
"""

MAX_CHARACTERS = 2_000_000
_MAX_BYTES = 2**30
_MAX_SHOWN = 300
"""Characters of an error."""


def serve() -> None:
    """Answer requests until there are no more, or until one takes more than its limits."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, _MAX_BYTES)
    for request in sys.stdin:
        # The kernel ends the process, whatever it does then; it counts whole seconds.
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + SECONDS)
        print(json.dumps(_reply(**json.loads(request))), flush=True)


def _limit(kind: int, wanted: int) -> None:
    """Set a soft limit as far as the hard one allows; macOS knows none of the address space."""
    _, hard = resource.getrlimit(kind)
    with suppress(ValueError, OSError):
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (soft, hard))


def _reply(
    text: str, messages: list[dict[str, str]], asks: bool, date: str,
    names: Mapping[str, str], variables: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """`text`, or why there is none: `line` of what is no Jinja, `date` that is asked for and not
    given, `unread` variables and what the template `reads`; `error` says more of the rest."""
    import jinja2

    try:
        template, reads = _compiled(text)
        if unread := sorted(set(variables) - reads):
            return {"unread": unread, "reads": sorted(reads)}
        given = {"tools": None, "documents": None, **names, **variables, "messages": messages}
        rendered = template.render(
            add_generation_prompt=asks, strftime_now=functools.partial(_dated, date), **given
        )
    except jinja2.TemplateSyntaxError as error:
        return {"line": error.lineno, "error": _line(error)}
    except _NoDate:
        return {"date": True}
    except Exception as error:  # whatever an operation of the template raises
        return {"error": _line(error)}
    if len(rendered) > MAX_CHARACTERS:
        return {"error": f"its text is longer than {MAX_CHARACTERS:,} characters"}
    return {"text": rendered}


def _line(error: Exception) -> str:
    text = " ".join(str(error)[: 2 * _MAX_SHOWN].split())[:_MAX_SHOWN]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@functools.lru_cache
def _compiled(text: str) -> tuple[jinja2.Template, set[str]]:
    """A template, and the names of the variables that it reads."""
    from jinja2 import ext, meta, nodes, parser, sandbox
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
    reads = meta.find_undeclared_variables(environment.parse(text))
    return environment.from_string(text), reads


class _NoDate(Exception):
    """A template asked for a date that is not given."""


def _dated(date: str, form: str) -> str:
    if not date:
        raise _NoDate
    return datetime.fromisoformat(date).strftime(form)
