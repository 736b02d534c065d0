"""Chat templates: messages to the text that a chat model was trained on."""

from __future__ import annotations

import atexit
import functools
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rft_jax.data.rendering import SECONDS
from rft_jax.errors import ModelError, UserError

_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from rft_jax.data.rendering import serve; serve()"


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """text: in Jinja; path: of the file it stands in; names: of special tokens by their role, such
    as `bos_token`, which the template may use."""

    text: str
    path: Path
    names: Mapping[str, str]


def render(
    template: ChatTemplate,
    *,
    system: str,
    user: str,
    answer: str | None = None,
    date: str = "",
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text that asks the model for an answer to the user's message, or that has one.

    Args:
        system: the message before the user's; empty for none.
        answer: the assistant's message; None to ask for it.
        date: what a template that asks for the date is told, YYYY-MM-DD: the clock would give a
            resumed run other prompts.
        variables: that the template reads, such as `enable_thinking`.

    Raises ModelError for a template that is no Jinja, that refuses the messages, that reads none of
    the variables, that reaches for what the sandbox does not give, or that takes more time or
    memory than rendering.py allows.
    """
    by_role = {"system": system or None, "user": user, "assistant": answer}
    reply = _ask(
        text=template.text,
        messages=[{"role": role, "content": t} for role, t in by_role.items() if t is not None],
        asks=answer is None,
        date=date,
        names=dict(template.names),
        variables=dict(variables or {}),
    )
    if "text" in reply:
        text: str = reply["text"]
        return text
    if "line" in reply:
        raise ModelError(
            f"{template.path}: line {reply['line']} of the chat template is no Jinja "
            f"({reply['error']}): download it again or fix it, or set data.prompt_format to text."
        )
    if "date" in reply:
        raise ModelError(
            f"{template.path}: the chat template asks for the date: set data.date, which stays the "
            "same when a run is resumed."
        )
    if "unread" in reply:
        raise ModelError(
            f"{template.path}: data.template_variables sets {', '.join(reply['unread'])}, which "
            f"the chat template does not read; it reads {', '.join(reply['reads'])}."
        )
    without = "leave data.system empty if it takes no system message, " if system else ""
    raise ModelError(
        f"{template.path}: the chat template cannot be rendered ({reply['error']}): {without}"
        "fix it, or set data.prompt_format to text."
    )


_turn = threading.Lock()


def _ask(**request: Any) -> dict[str, Any]:
    """The reply of the process that renders; one that a template brings down is started again."""
    with _turn:
        process = _renderer()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        except BaseException:  # interrupted: a reply may still come, and answers nothing
            _end(process)
            raise
        if line:
            reply: dict[str, Any] = json.loads(line)
            return reply
        _end(process)
        if process.returncode == -signal.SIGXCPU:
            return {"error": f"it takes more than {SECONDS} seconds"}
        return {"error": f"it brings down the process that renders it, {process.returncode}"}


@functools.cache
def _renderer() -> subprocess.Popen[bytes]:
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for this process
        )
    except OSError as error:
        raise UserError(f"cannot start the process that renders chats ({error}).") from error
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    atexit.unregister(_end)
    _renderer.cache_clear()
    process.kill()
    process.communicate()
