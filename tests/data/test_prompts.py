"""Prompts, demonstrations, and the check of their lengths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.data.prompts import check_lengths, completion_tokens, prompt_tokens
from rft_jax.data.sources import DataError
from rft_jax.data.tokenizer import train
from rft_jax.records import Question


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train(["How many?\n1+1=2\n#### 2"] * 3, tmp_path_factory.mktemp("t") / "t.model", 275)


def questions():
    return [
        Question(id=4, text="How many?", answer="2", solution="1+1=2\n#### 2"),
        Question(id=7, text="How many, how many?", answer="2", solution="#### 2"),
    ]


def check(tokenizer, rows, **changes):
    settings = {
        "source": "jsonl:q.jsonl",
        "template": "{question}\n",
        "tokenizer": tokenizer,
        "max_prompt_tokens": 40,
        "max_completion_tokens": 40,
        "demonstrations": True,
    }
    check_lengths(rows, **settings | changes)


@given(st.text(), st.text().filter(lambda text: "{question}" not in text))
def test_a_prompt_is_bos_and_the_filled_template(tokenizer, question, before):
    first, *rest = prompt_tokens(question, before + "{question}\n", tokenizer)
    assert first == tokenizer.bos_id
    assert tokenizer.decode(rest) == before + question + "\n"


@pytest.mark.parametrize("question", ["{x} {} {0} {{", "{question}", "a {question} b", "%s \\1"])
def test_braces_in_a_question_mean_nothing(tokenizer, question):
    tokens = prompt_tokens(question, "Q: {question} {A}:", tokenizer)
    assert tokenizer.decode(tokens) == f"Q: {question} {{A}}:"


@given(st.text())
def test_a_completion_ends_with_eos(tokenizer, solution):
    *rest, last = completion_tokens(solution, tokenizer)
    assert last == tokenizer.eos_id
    assert tokenizer.eos_id not in rest
    assert tokenizer.decode(rest) == solution


def test_what_fits_passes_and_the_named_setting_is_the_smallest(tokenizer):
    rows = questions()
    prompt = max(len(prompt_tokens(q.text, "{question}\n", tokenizer)) for q in rows)
    completion = max(len(completion_tokens(q.solution, tokenizer)) for q in rows)
    check(tokenizer, rows, max_prompt_tokens=prompt, max_completion_tokens=completion)
    with pytest.raises(DataError) as prompt_error:
        check(tokenizer, rows, max_prompt_tokens=prompt - 1)
    assert str(prompt_error.value) == (
        f"jsonl:q.jsonl: the prompt of question 7 has {prompt} tokens and data.max_prompt_tokens "
        f"is {prompt - 1}: set it to {prompt} or more, or leave the question out."
    )
    with pytest.raises(DataError) as completion_error:
        check(tokenizer, rows, max_completion_tokens=completion - 1)
    assert str(completion_error.value) == (
        f"jsonl:q.jsonl: the demonstration of question 4 has {completion} tokens and "
        f"data.max_completion_tokens is {completion - 1}: set it to {completion} or more, or "
        "leave the question out."
    )


def test_solutions_matter_only_for_demonstrations(tokenizer):
    rows = [*questions(), Question(id=9, text="How?", answer="2")]
    check(tokenizer, rows, demonstrations=False, max_completion_tokens=1)
    with pytest.raises(
        DataError, match=r"^jsonl:q.jsonl: question 9 has no solution: method sft trains on"
    ):
        check(tokenizer, rows)


def test_no_questions_pass(tokenizer):
    check(tokenizer, [])
