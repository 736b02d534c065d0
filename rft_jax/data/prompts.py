"""From questions and solutions to token ids, and the check that they fit the shapes of a run."""

from __future__ import annotations

from collections.abc import Sequence

from rft_jax.data.sources import DataError
from rft_jax.data.tokenizer import Tokenizer
from rft_jax.records import Question


def prompt_tokens(question: str, template: str, tokenizer: Tokenizer) -> list[int]:
    """BOS and the template's tokens, `{question}` replaced; other braces mean nothing."""
    return [tokenizer.bos_id, *tokenizer.encode(template.replace("{question}", question, 1))]


def completion_tokens(solution: str, tokenizer: Tokenizer) -> list[int]:
    """The solution's tokens and EOS: the output o that a demonstration trains."""
    return [*tokenizer.encode(solution), tokenizer.eos_id]


def check_lengths(
    questions: Sequence[Question],
    *,
    source: str,
    template: str,
    tokenizer: Tokenizer,
    max_prompt_tokens: int,
    max_completion_tokens: int,
    demonstrations: bool,
) -> None:
    """Raise DataError unless every prompt, and every demonstration where solutions are trained on,
    fits; the message names the longest, which is the smallest setting that would do."""
    prompts = [(len(prompt_tokens(q.text, template, tokenizer)), q.id) for q in questions]
    _check_longest(prompts, source, "prompt", "data.max_prompt_tokens", max_prompt_tokens)
    if not demonstrations:
        return
    completions = []
    for question in questions:
        if question.solution is None:
            raise DataError(
                f"{source}: question {question.id} has no solution: method sft trains on "
                "demonstrations; give every row a solution or choose another source."
            )
        completions.append((len(completion_tokens(question.solution, tokenizer)), question.id))
    _check_longest(
        completions,
        source,
        "demonstration",
        "data.max_completion_tokens",
        max_completion_tokens,
    )


def _check_longest(
    lengths: Sequence[tuple[int, int]], source: str, what: str, setting: str, allowed: int
) -> None:
    length, question_id = max(lengths, default=(0, -1))
    if length > allowed:
        raise DataError(
            f"{source}: the {what} of question {question_id} has {length} tokens and {setting} is "
            f"{allowed}: set it to {length} or more, or leave the question out."
        )
