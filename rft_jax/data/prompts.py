"""From questions and solutions to token ids, and the check that they fit the shapes of a run."""

from __future__ import annotations

from collections.abc import Sequence

from rft_jax.config import DataConfig
from rft_jax.data.chat import render
from rft_jax.data.tokenizers.base import Tokenizer, shown
from rft_jax.errors import DataError, ModelError
from rft_jax.types import Question


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


def check_lengths(
    questions: Sequence[Question],
    *,
    source: str,
    data: DataConfig,
    tokenizer: Tokenizer,
    demonstrations: bool,
) -> None:
    """Raise DataError unless every prompt, and every demonstration where solutions are trained on,
    fits; the message names the longest, which is the smallest setting that would do.

    All prompts are rendered here, so that a chat template that cannot serve shows too.
    """

    def check(lengths: Sequence[tuple[int, int]], what: str, setting: str, allowed: int) -> None:
        length, question_id = max(lengths, default=(0, -1))
        if length > allowed:
            raise DataError(
                f"{source}: the {what} of question {question_id} has {length} tokens and {setting} "
                f"is {allowed}: set it to {length} or more, or leave the question out."
            )

    prompts = [(len(prompt_tokens(q.text, data, tokenizer)), q.id) for q in questions]
    check(prompts, "prompt", "data.max_prompt_tokens", data.max_prompt_tokens)
    if not demonstrations:
        return
    lengths = []
    for question in questions:
        if question.solution is None:
            raise DataError(
                f"{source}: question {question.id} has no solution, and the method trains on "
                "demonstrations; give every row a solution or choose another source."
            )
        lengths.append((len(completion_tokens(question.solution, tokenizer)), question.id))
    check(lengths, "demonstration", "data.max_completion_tokens", data.max_completion_tokens)
