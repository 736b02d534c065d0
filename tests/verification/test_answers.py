"""Extraction of the answer after the last `####`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.verification.answers import (
    NO_ANSWER,
    NOT_A_NUMBER,
    TEXT_AFTER_ANSWER,
    TWO_ANSWERS,
    AnswerError,
    hash_answer,
    reference_answer,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48 + 24 = <<48+24=72>>72\n#### 72", "72"),
        ("#### 72", "72"),
        ("####72", "72"),
        ("#### +18", "+18"),
        ("#### $1,080.50 \n", "$1,080.50"),
        ("####\t1/2\n\n  \n", "1/2"),
        ("#### −7\r\n", "−7"),
        ("He has 5 left. #### 5", "5"),
        ("#### Step 1\n2 + 3 = 5\n#### 5", "5"),
        ("#### 5\n#### 5", "5"),
        ("#### 5 or so\n#### 5.0", "5.0"),
        ("##### Title 5\n#### 6", "6"),
    ],
)
def test_an_answer_is_found(text: str, answer: str) -> None:
    assert hash_answer(text) == (answer, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", NO_ANSWER),
        ("The answer is 72.", NO_ANSWER),
        ("A: 18", NO_ANSWER),
        ("### 72", NO_ANSWER),
        ("##### 72", NO_ANSWER),
        ("# # # # 72", NO_ANSWER),
        ("#### ", NO_ANSWER),
        ("####\n72", NO_ANSWER),
        ("#### 72\n####", NO_ANSWER),
        ("#### 5 or 6", TWO_ANSWERS),
        ("#### 5, 6", TWO_ANSWERS),
        ("#### 5,6", TWO_ANSWERS),
        ("#### 5 6", TWO_ANSWERS),
        ("#### 1 1/2", TWO_ANSWERS),
        ("#### 5\n#### 6", TWO_ANSWERS),
        ("#### 5 #### 6", TWO_ANSWERS),
        ("#### 5\nNo, wait.\n#### 6\n#### 6", TWO_ANSWERS),
        ("#### seventy", NOT_A_NUMBER),
        ("#### 12a3", NOT_A_NUMBER),
        ("#### x7", NOT_A_NUMBER),
        ("#### 0/0", NOT_A_NUMBER),
        ("#### 72 clips", NOT_A_NUMBER),
        ("#### ٣", NOT_A_NUMBER),
        ("#### 7\x00", NOT_A_NUMBER),
        ("#### " + "7" * 10_000, NOT_A_NUMBER),
        ("#### 72\nI hope this helps.", TEXT_AFTER_ANSWER),
        ("#### 72\nor 73", TEXT_AFTER_ANSWER),
    ],
)
def test_no_answer_is_found(text: str, reason: str) -> None:
    assert hash_answer(text) == (None, reason)


@given(st.text(), st.integers())
def test_extraction_is_the_inverse_of_rendering(steps: str, answer: int) -> None:
    text = f"{steps.replace('#', '')}\n#### {answer}"
    assert hash_answer(text) == (str(answer), "")


@given(st.one_of(st.text(), st.text(alphabet="# \n0123456789/,.$%ab")))
def test_no_text_raises_and_an_answer_is_a_reference(text: str) -> None:
    answer, reason = hash_answer(text)
    assert (answer is None) is bool(reason)
    if answer is not None:
        assert reference_answer(answer) == answer
        assert reference_answer(text) == answer


@pytest.mark.parametrize(
    ("reference", "answer"),
    [("18", "18"), (" 1,080\n", "1,080"), ("1/2", "1/2"), ("9 + 9 = 18\n#### 18", "18")],
)
def test_reference(reference: str, answer: str) -> None:
    assert reference_answer(reference) == answer


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("", NOT_A_NUMBER),
        ("eighteen", NOT_A_NUMBER),
        ("9 + 9 = 18", NOT_A_NUMBER),
        ("9 + 9 = 18\n####", NO_ANSWER),
        ("#### 18 or 19", TWO_ANSWERS),
    ],
)
def test_a_reference_without_an_answer(reference: str, reason: str) -> None:
    with pytest.raises(AnswerError) as raised:
        reference_answer(reference)
    assert str(raised.value) == (
        f"reference {reference!r} states no answer ({reason}): give a number, or a solution whose "
        "last line is `#### NUMBER`."
    )
