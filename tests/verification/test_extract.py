"""Extraction of the answer after the last `####`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.verification.extract import (
    EXTRACTIONS,
    FORMS,
    NO_ANSWER,
    TEXT_AFTER_ANSWER,
    TWO_ANSWERS,
    UNCLOSED,
    Answer,
    AnswerError,
    Extraction,
    auto_answer,
    boxed_answer,
    hash_answer,
    lenient_last_number,
    reference_answer,
    tagged_answer,
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
        ("#### 72\nI hope this helps.", "72"),
        ("#### 72\nThat is 72.0 in all", "72"),
        ("#### **72**.", "72"),
        (r"#### $\boxed{72}$", "72"),
        ("#### The answer is: 72", "72"),
        ("#### = 72", "72"),
        ("#### 5 or 6", "5 or 6"),
        (r"#### \frac{1}{2}", r"\frac{1}{2}"),
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
        ("#### 5\n#### 6", TWO_ANSWERS),
        ("#### 5 #### 6", TWO_ANSWERS),
        ("#### 5\nNo, wait.\n#### 6\n#### 6", TWO_ANSWERS),
        ("#### 72\nor seventy-three", TEXT_AFTER_ANSWER),
        ("#### 72\nor ７３", TEXT_AFTER_ANSWER),
        ("#### 72\nor 73", TEXT_AFTER_ANSWER),
    ],
)
def test_no_answer_is_found(text: str, reason: str) -> None:
    assert hash_answer(text) == (None, reason)


@given(st.text(), st.integers())
def test_extraction_is_the_inverse_of_rendering(steps: str, answer: int) -> None:
    text = f"{steps.replace('#', '')}\n#### {answer}"
    assert hash_answer(text) == (str(answer), "")


@pytest.mark.parametrize("rule", sorted(EXTRACTIONS))
@given(
    st.text(alphabet=st.characters(codec="ascii", exclude_characters="#\\<>{}0123456789")),
    st.data(),
)
def test_every_rule_reads_what_its_form_states(rule: str, steps: str, data: st.DataObject) -> None:
    answer = data.draw(
        st.one_of(
            st.integers().map(str),
            st.fractions(max_denominator=999).map(
                lambda f: rf"\frac{{{f.numerator}}}{{{f.denominator}}}"
            ),
        )
    )
    assert EXTRACTIONS[rule](f"{steps}\n" + FORMS[rule].format(answer=answer)) == (answer, "")


_FRAGMENTS = st.lists(
    st.sampled_from(
        ["####", "#### 5", "\n", r"\boxed{", "}", "{", "6", "<answer>", "</answer>", " or "]
    )
).map("".join)


@pytest.mark.parametrize(
    "extract", [hash_answer, boxed_answer, tagged_answer, auto_answer, lenient_last_number]
)
@given(st.one_of(st.text(), _FRAGMENTS))
def test_no_text_raises_and_none_has_a_reason(extract: Extraction, text: str) -> None:
    answer, reason = extract(text)
    assert (answer is None) is bool(reason)
    if answer is not None:
        assert answer == answer.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{5}", Answer("5", "")),
        (r"\boxed {\frac{1}{2}}.", Answer(r"\frac{1}{2}", "")),
        (r"\fbox{5}", Answer("5", "")),
        (r"\boxed{\{1, 2\}}", Answer(r"\{1, 2\}", "")),
        (r"{ \boxed{5} }", Answer("5", "")),
        (r"\boxed{5} = \boxed{5.0}", Answer("5", "")),
        (r"\boxed{5} \boxed{6}", Answer("5, 6", "")),
        (r"\boxed{\boxed{5}}", Answer("5", "")),
        (r"\boxed{5", Answer(None, UNCLOSED)),
        (r"\boxed{5} \boxed{6", Answer(None, UNCLOSED)),
        (r"\boxed{5} or 6", Answer(None, TWO_ANSWERS)),
        (r"5 or \boxed{6}", Answer(None, TWO_ANSWERS)),
        (r"\boxed{}", Answer(None, NO_ANSWER)),
        ("boxed 5", Answer(None, NO_ANSWER)),
        (
            r"\boxed{1}" * 3 + "".join(rf"\boxed{{{n}}}" for n in range(20)),
            Answer(None, TWO_ANSWERS),
        ),
    ],
)
def test_boxes(text: str, expected: Answer) -> None:
    assert boxed_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>5</answer>", Answer("5", "")),
        ("<ANSWER>\n5\n</ANSWER> done", Answer("5", "")),
        ("<answer>5</answer> <answer>6</answer>", Answer("5, 6", "")),
        ("<answer>5</answer> <answer>6", Answer(None, UNCLOSED)),
        ("<answer></answer>", Answer(None, NO_ANSWER)),
        ("</answer>5<answer>", Answer(None, UNCLOSED)),
        ("5</answer>", Answer(None, NO_ANSWER)),
    ],
)
def test_tags(text: str, expected: Answer) -> None:
    assert tagged_answer(text) == expected


@pytest.mark.parametrize("text", [r"\boxed{" * 50_000, "<answer>" * 50_000, "####" * 50_000 + "x"])
def test_pathological_repetition_takes_linear_time(text: str) -> None:
    assert auto_answer(text).text is None
    assert tagged_answer(text).text is None


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("18", "18"),
        (" 1,080\n", "1,080"),
        ("1/2", "1/2"),
        ("9 + 9 = 18\n#### 18", "18"),
        (r"so $\boxed{18}$", "18"),
    ],
)
def test_reference(reference: str, answer: str) -> None:
    assert reference_answer(reference) == answer


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("", NO_ANSWER),
        ("9 + 9 = 18\n####", NO_ANSWER),
        ("#### 18\n#### 19", TWO_ANSWERS),
    ],
)
def test_a_reference_without_an_answer(reference: str, reason: str) -> None:
    with pytest.raises(AnswerError) as raised:
        reference_answer(reference)
    assert str(raised.value) == (
        f"reference {reference!r} states no answer ({reason}): give a bare answer, or a "
        "solution whose last line is `#### ANSWER`."
    )
