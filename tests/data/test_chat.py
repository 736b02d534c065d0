"""Chat templates: transformers' text of the same messages, and templates that cannot serve."""

import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import jinja2
import pytest
import reference_tokenizers
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.data.chat import ChatTemplate, render
from rft_jax.errors import ModelError

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

TEMPLATES = {
    "chatml": reference_tokenizers.CHATML,
    "llama3": reference_tokenizers.LLAMA3_CHAT,
    "gemma": reference_tokenizers.GEMMA_CHAT,
    "mistral": reference_tokenizers.MISTRAL_CHAT,
    "tags": (
        "{% generation %}{% for m in messages %}{% if loop.index0 == 9 %}{% break %}{% endif %}"
        "{{ m.content }}{% endfor %}{% endgeneration %}\n  {% if tools %}t{% endif %}\n"
        "{%- for m in messages %}{% if m.role != 'user' %}{% continue %}{% endif %}!{% endfor %}\n"
    ),
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2, sort_keys=true) }}"
    "{{ messages[0] | tojson(ensure_ascii=true, separators=(',', ':')) }}{{ '<' | tojson }}",
    "date": "{{ strftime_now('%Y') }}{% if strftime_now is defined %}d{% endif %}",
    "lenient": "{{ nothing }}{% if enable_thinking is not defined %}x{% endif %}{{ documents }}",
    "values": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{{ dict(role=m.role, n=ns.n) }}{{ m.content.strip()[:3] | upper }}{% endfor %}{{ range(3) }}",
}


def template(text: str) -> ChatTemplate:
    return ChatTemplate(text, Path("model/chat_template.jinja"), NAMES)


def theirs(text: str, system: str, user: str) -> str | None:
    """transformers' rendering; None where the template refuses."""
    with reference_tokenizers.quiet():
        from transformers.utils.chat_template_utils import render_jinja_template
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    try:
        rendered, _ = render_jinja_template(
            [messages], chat_template=text, add_generation_prompt=True, **NAMES
        )
    except jinja2.TemplateError:
        return None
    return rendered[0]


@pytest.mark.parametrize("name", TEMPLATES)
@given(system=st.sampled_from(["", "Be brief.", " {{ x }} \n"]), user=st.text())
def test_the_text_is_that_of_transformers(name, system, user):
    expected = theirs(TEMPLATES[name], system, user)
    if expected is None:
        assert (name, bool(system)) == ("gemma", True)
        with pytest.raises(ModelError, match="no system message here"):
            render(template(TEMPLATES[name]), system=system, user=user)
    else:
        today = datetime.now().date().isoformat()
        found = render(template(TEMPLATES[name]), system=system, user=user, date=today)
        assert found == expected


def test_the_date_is_the_settings_and_not_the_clocks():
    """A resumed run must make the same prompts."""
    text = "{{ strftime_now('%d %b %Y') }}"
    assert render(template(text), system="", user="", date="2024-07-26") == "26 Jul 2024"
    with pytest.raises(ModelError) as error:
        render(template(text), system="", user="")
    assert str(error.value) == (
        "model/chat_template.jinja: the chat template asks for the date: set data.date, which "
        "stays the same when a run is resumed."
    )


REFUSED = {
    "not closed": (
        "{% if x %}", "", "line 1 of the chat template is no Jinja (TemplateSyntaxError: ",
    ),
    "line of the error": ("a\n\n{{ 1 + }}", "", "line 3 of the chat template is no Jinja ("),
    "no such filter": (
        "{{ 1 | shorten }}", "", "line 1 of the chat template is no Jinja (TemplateAssertionErr",
    ),
    "raises": (
        "{{ raise_exception('two\nlines') }}", "",
        "the chat template cannot be rendered (TemplateError: two lines): fix it, or set "
        "data.prompt_format to text.",
    ),
    "raises with a system message": (
        "{{ raise_exception('no') }}", "Be brief.",
        "the chat template cannot be rendered (TemplateError: no): leave data.system empty if it "
        "takes no system message, fix it, or set data.prompt_format to text.",
    ),
    "nothing has no fields": (
        "{{ messages[9].content }}", "",
        "the chat template cannot be rendered (UndefinedError: list object has no element 9): ",
    ),
    "divides by zero": ("{{ 1 // 0 }}", "", "the chat template cannot be rendered (ZeroDivision"),
    "adds what does not add": ("{{ 1 + 'a' }}", "", "the chat template cannot be rendered (TypeE"),
    "calls itself": (
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "",
        "the chat template cannot be rendered (RecursionError: ",
    ),
    "a range too long": (
        "{% for i in range(10**7) %}{% endfor %}", "",
        "the chat template cannot be rendered (OverflowError: ",
    ),
    "Python's internals": (
        "{{ ''.__class__.__mro__ }}", "",
        "the chat template cannot be rendered (SecurityError: access to attribute '__class__' of "
        "'str' object is unsafe.): ",
    ),
    "the globals of a function": (
        "{{ raise_exception.__globals__.x }}", "", "the chat template cannot be rendered (Security",
    ),
    "the internals by a filter": (
        "{{ ('' | attr('__class__')).x }}", "", "the chat template cannot be rendered (Security",
    ),
    "the internals by a format": (
        "{{ '{0.__class__.x}'.format(1) }}", "", "the chat template cannot be rendered (",
    ),
    "changes the messages": (
        "{{ messages.append(1) }}", "", "the chat template cannot be rendered (SecurityError: ",
    ),
    "reads a file": (
        "{% include '/etc/hostname' %}", "", "the chat template cannot be rendered (TypeError: no",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_template_that_cannot_serve_is_one_line(case):
    text, system, message = REFUSED[case]
    with pytest.raises(ModelError) as error:
        render(template(text), system=system, user="1+1?")
    assert str(error.value).startswith(f"model/chat_template.jinja: {message}")
    assert "\n" not in str(error.value)


def refusal(text: str) -> str:
    with pytest.raises(ModelError) as error:
        render(template(text), system="", user="1+1?")
    assert "\n" not in str(error.value)
    return (
        str(error.value)
        .removeprefix("model/chat_template.jinja: the chat template cannot be rendered (")
        .removesuffix("): fix it, or set data.prompt_format to text.")
    )


LARGE = {
    "a product": "{{ 'x' * 10**10 }}",
    "an indent": "{{ 'x' | center(10**10) }}",
    "doubling": "{% set ns = namespace(s='x') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "a list": "{{ ([0] * 10**9) | length }}",
}


@pytest.mark.parametrize("case", LARGE)
def test_memory_is_bounded(case):
    assert refusal(LARGE[case]) == "MemoryError"
    assert render(template("{{ messages[0].content }}"), system="", user="a") == "a"


def test_the_length_of_a_text_is_bounded():
    assert refusal("{{ 'x' * 3000000 }}") == "its text is longer than 2,000,000 characters"


def test_the_length_of_a_message_is_bounded():
    assert len(refusal("{{ raise_exception('x' * 1000000) }}")) < 400


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_time_is_bounded(text):
    assert refusal(text) == "it takes more than 5 seconds"
    assert render(template("{{ messages[0].content }}"), system="", user="a") == "a"


@pytest.mark.slow
def test_the_process_that_renders_ends_with_this_one():
    script = (
        "from pathlib import Path; from rft_jax.data import chat; "
        "chat.render(chat.ChatTemplate('a', Path('t'), {}), system='', user=''); "
        "print(chat._renderer().pid, flush=True); import os; os._exit(0)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{run.stdout.strip()}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert run.stderr == ""
    assert time.monotonic() < deadline
