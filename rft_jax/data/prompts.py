"""From questions and solutions to token ids, and the check that they fit the shapes of a run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rft_jax.config import DataConfig
from rft_jax.data.chat import render
from rft_jax.data.tokenizers.base import Tokenizer, shown
from rft_jax.errors import DataError, ModelError
from rft_jax.types import Question

NAMED = 3
"""Questions that a message names of those that are too long."""


def prompt_tokens(question: str, data: DataConfig, tokenizer: Tokenizer) -> list[int]:
    """What is put before the model: data.prompt_template with `{question}` replaced (other braces
    mean nothing), behind the tokenizer's prefix or, as a user's message, in its chat template.

    Raises ModelError for a template that is missing or cannot be rendered, and DataError for
    a message that names a special token: in a chat it would be one.
    """
    text = data.prompt_template.replace("{question}", question, 1)
    if data.prompt_format == "text":
        return [*tokenizer.prefix_ids, *tokenizer.encode(text)]
    if tokenizer.chat_template is None:
        raise ModelError(
            f"{tokenizer.path}: the tokenizer has no chat template, and data.prompt_format is "
            "chat: name a chat model's folder in tokenizer.path, or set data.prompt_format to text."
        )
    named = [token for token in tokenizer.encode_marked(text) if token in tokenizer.special]
    if named:
        raise DataError(
            f"question {shown(question)}: its prompt names {tokenizer.special[named[0]]!r}, a "
            f"special token of {tokenizer.path}, which in a chat it would become: leave the "
            "question out, or set data.prompt_format to text."
        )
    rendered = render(tokenizer.chat_template, system=data.system, user=text, date=data.date)
    return tokenizer.encode_marked(rendered)


def completion_tokens(solution: str, tokenizer: Tokenizer) -> list[int]:
    """The solution's tokens and EOS: the output o that a demonstration trains."""
    return [*tokenizer.encode(solution), tokenizer.eos_id]


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
    return len(completion_tokens(question.solution, tokenizer))
