"""From questions and solutions to token ids, and the check that they fit the shapes of a run."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace

from rft_jax.config import DataConfig
from rft_jax.data.chat import ChatTemplate, render
from rft_jax.data.tokenizers.base import Tokenizer, shown
from rft_jax.errors import ConfigError, DataError, ModelError
from rft_jax.types import Question

NAMED = 3
"""Questions that a message names of those that are too long."""
_QUESTION, _ANSWER = "Zq7 asked 19?", "Zq7 answered 23"
"""Messages that no template has in it by itself."""


def prompt_text(question: str, data: DataConfig, tokenizer: Tokenizer) -> str:
    """The prompt of a question as a person reads it, names of special tokens included.

    Raises ModelError for a chat template that is missing, that cannot be rendered or that leaves
    the question out.
    """
    text = data.message(question)
    if data.prompt_format == "text":
        return "".join(tokenizer.special[token] for token in tokenizer.prefix_ids) + text
    return _chat(text, data, tokenizer)


def prompt_tokens(question: str, data: DataConfig, tokenizer: Tokenizer) -> list[int]:
    """What is put before the model: data.prompt_template with `{question}` replaced, behind the
    tokenizer's prefix or, as a user's message, in its chat template.

    Raises ModelError as prompt_text does, and DataError for a message that names a special token:
    in a chat it would be one.
    """
    text = data.message(question)
    if data.prompt_format == "text":
        return [*tokenizer.prefix_ids, *tokenizer.encode(text)]
    rendered = _chat(text, data, tokenizer)
    named = [token for token in tokenizer.encode_marked(text) if token in tokenizer.special]
    if named:
        raise DataError(
            f"question {shown(question)}: its prompt names {tokenizer.special[named[0]]!r}, a "
            f"special token of {tokenizer.path}, which in a chat it would become: leave the "
            "question out, or set data.prompt_format to text."
        )
    return tokenizer.encode_marked(rendered)


def completion_tokens(solution: str, tokenizer: Tokenizer) -> list[int]:
    """The solution's tokens and EOS: the output o that a demonstration trains."""
    return [*tokenizer.encode(solution), *tokenizer.before_eos, tokenizer.eos_id]


def with_ends(tokenizer: Tokenizer, data: DataConfig) -> Tokenizer:
    """The tokenizer with the ends that outputs have under these settings.

    A demonstration in a chat ends as the template ends an assistant's message, up to the first
    token that is no text (what follows, such as a newline, belongs to the next turn and is never
    sampled), and otherwise, or where the template has no such token, with the tokenizer's EOS. Each
    of these, and data.stop_tokens, ends an output that is sampled.

    Raises ModelError for a template that is missing, that cannot be rendered, or that leaves out
    the user's or the system's message; ConfigError for what is no token.
    """
    ids, special = [*tokenizer.eos_ids], dict(tokenizer.special)
    before: list[int] = []
    if data.prompt_format == "chat":
        prompt_text(_QUESTION, data, tokenizer)
        other = replace(data, system=f"{data.system} {_ANSWER}")
        if data.system and _ANSWER not in prompt_text(_QUESTION, other, tokenizer):
            raise ModelError(
                f"{tokenizer.path}: data.system is set and the chat template does not print it: "
                "leave it empty, or write it into data.prompt_template."
            )
        before, end = _end_of_turn(data, tokenizer)
        ids = [*end, *ids]
        special |= {token: tokenizer.marks[token] for token in end}
    for name in data.stop_tokens:
        found = tokenizer.encode_marked(name)
        if len(found) != 1:
            raise ConfigError(
                f"data.stop_tokens holds {name!r}, which is {len(found)} tokens of "
                f"{tokenizer.path}: name a single one."
            )
        ids += found
    eos_ids = tuple(dict.fromkeys(ids))
    return replace(tokenizer, eos_ids=eos_ids, special=special, before_eos=tuple(before))


def ends_text(tokenizer: Tokenizer) -> str:
    """What ends an output and a demonstration, as a person reads it."""
    # A tokenizer with a dummy prefix takes a text's first space off.
    answered = tokenizer.decode([*tokenizer.encode(_ANSWER), *tokenizer.before_eos])
    end = answered.removeprefix(_ANSWER) + _name(tokenizer.eos_id, tokenizer)
    names = " or ".join(repr(_name(token, tokenizer)) for token in tokenizer.eos_ids)
    return f"a demonstration ends with {end!r}, a sampled output with {names}"


def _name(token: int, tokenizer: Tokenizer) -> str:
    return tokenizer.special.get(token) or tokenizer.decode([token])


def _chat(text: str, data: DataConfig, tokenizer: Tokenizer, answer: str | None = None) -> str:
    """The user's message in the chat template, with the assistant's or up to it."""
    if tokenizer.chat_template is None:
        raise ModelError(
            f"{tokenizer.path}: the tokenizer has no chat template, and data.prompt_format is "
            "chat: name a chat model's folder in tokenizer.path, or set data.prompt_format to text."
        )
    return _rendered(tokenizer.chat_template, text, data, answer)


@functools.lru_cache(maxsize=2**14)  # every step asks for some of the same prompts
def _rendered(template: ChatTemplate, text: str, data: DataConfig, answer: str | None) -> str:
    rendered = render(
        template,
        system=data.system,
        user=text,
        answer=answer,
        date=data.date,
        variables=data.variables,
    )
    if text.strip() not in rendered:
        raise ModelError(
            f"{template.path}: the chat template does not print the user's message as it stands "
            f"({shown(text)}), so that questions could be asked alike; a template that takes "
            "messages in parts is not served: fix it, or set data.prompt_format to text."
        )
    return rendered


def _end_of_turn(data: DataConfig, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(ids between an assistant's message and its end, the end), empty where there is no end."""
    try:
        rendered = _chat(data.message(_QUESTION), data, tokenizer, _ANSWER)
    except ModelError:  # it takes no assistant's message
        return [], []
    after = rendered.rpartition(_ANSWER)[2] if _ANSWER in rendered else ""
    answer, ids = tokenizer.encode_marked(_ANSWER), tokenizer.encode_marked(_ANSWER + after)
    end = next((place for place, token in enumerate(ids) if token in tokenizer.marks), None)
    if end is None:
        return [], []
    # Of a tokenizer that joins the answer's last letters with what follows, the end alone.
    return ids[len(answer) : end] if ids[: len(answer)] == answer else [], [ids[end]]


def split_by_length(
    questions: Sequence[Question],
    *,
    source: str,
    data: DataConfig,
    tokenizer: Tokenizer,
    demonstrations: bool,
) -> tuple[tuple[Question, ...], str]:
    """The questions whose prompt, and whose demonstration where solutions are trained on, fits; and
    a sentence on the others, with the smallest setting that would do, empty for none.

    All prompts are rendered here, so that a chat template that cannot serve shows too. Raises
    DataError for a question without the solution that is trained on.
    """
    prompts = [len(prompt_tokens(q.text, data, tokenizer)) for q in questions]
    allowed = data.max_prompt_tokens
    said = [exceeding(questions, prompts, "prompts", "data.max_prompt_tokens", allowed)]
    fits = [length <= allowed for length in prompts]
    if demonstrations:
        outputs = [_demonstrated(question, source, tokenizer) for question in questions]
        allowed, setting = data.max_completion_tokens, "data.max_completion_tokens"
        said.append(exceeding(questions, outputs, "demonstrations", setting, allowed))
        fits = [fit and length <= allowed for fit, length in zip(fits, outputs, strict=True)]
    sentence = " and ".join(filter(None, said))
    kept = tuple(itertools.compress(questions, fits))
    return kept, sentence and f"{source}: {sentence}"


def exceeding(
    questions: Sequence[Question], lengths: Sequence[int], what: str, setting: str, allowed: int
) -> str:
    """How many of the questions' lengths exceed a setting, and the first few; or nothing."""
    longer = [(q.id, n) for q, n in zip(questions, lengths, strict=True) if n > allowed]
    if not longer:
        return ""
    first = [f"question {question_id} has {n}" for question_id, n in longer[:NAMED]]
    more = [f"{len(longer) - NAMED:,} more"] if len(longer) > NAMED else []
    return (
        f"{len(longer):,} of {len(lengths):,} {what} have more tokens than {setting}, {allowed} "
        f"({', '.join([*first, *more])}; {max(lengths)} would hold all)"
    )


def _demonstrated(question: Question, source: str, tokenizer: Tokenizer) -> int:
    """Tokens of the question's demonstration."""
    if question.solution is None:
        raise DataError(
            f"{source}: question {question.id} has no solution, and the method trains on "
            "demonstrations; give every row a solution or choose another source."
        )
    tokens = completion_tokens(question.solution, tokenizer)
    if inside := set(tokens[:-1]) & set(tokenizer.eos_ids):
        raise DataError(
            f"{source}: the solution of question {question.id} holds "
            f"{_name(min(inside), tokenizer)!r}, a token that ends an output: leave the question "
            "out, or choose other data.stop_tokens."
        )
    return len(tokens)
