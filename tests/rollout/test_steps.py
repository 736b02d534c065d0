"""Steps from characters to tokens, under a tokenizer whose tokens span characters, and characters
tokens."""

from __future__ import annotations

import pytest
from enumeration import EOS, sampling
from hypothesis import assume, given
from hypothesis import strategies as st

from rft_jax.data.arithmetic import problems
from rft_jax.data.tokenizers.base import Tokenizer
from rft_jax.data.tokenizers.sentencepiece_model import train
from rft_jax.rollout.steps import in_tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    corpus = [text for p in problems(5, 400) for text in (p.question + "\n", p.solution)]
    return train(corpus, tmp_path_factory.mktemp("tokenizer") / "t.model", 512)


def test_by_hand() -> None:
    """Tokens of one character each."""
    digits = sampling().tokenizer
    said = ((2, 0.5), (3, 1.0))
    assert in_tokens(said, "1212", (1, 2, 1, 2, EOS), digits) == ((1, 0.5), (2, 1.0))
    assert in_tokens(((1, 2.0), (4, 3.0)), "1212", (1, 2, 1, 2, EOS), digits) == (
        (0, 2.0),
        (4, 3.0),
    )
    assert in_tokens(((4, 3.0),), "1212", (1, 2, 1, 2), digits) == ((3, 3.0),)
    assert in_tokens((), "", (EOS,), digits) == ()


def test_a_step_that_ends_inside_a_token_ends_there(tokenizer: Tokenizer) -> None:
    """A character of three bytes is three tokens; a line's end and what follows it are one."""
    text = "中2\n#### 37"
    tokens = tokenizer.encode(text)
    assert [tokenizer.decode(tokens[: n + 1]) for n in (2, 3, 4)] == ["中", "中2", "中2\n####"]
    found = in_tokens(((1, 1.0), (2, 0.5), (3, 0.0)), text, tokens, tokenizer)
    assert found == ((2, 1.0), (3, 0.5), (4, 0.0))
    both = in_tokens(((3, 0.5), (7, 1.0), (8, 0.0)), text, tokens, tokenizer)
    assert both == ((4, 0.75), (5, 0.0))  # the mean of two that end in one token
    unknown = tokenizer.encode("\ufffd\ufffd")  # as are bytes that are no character yet
    assert in_tokens(((1, 1.0), (2, 0.0)), "\ufffd\ufffd", unknown, tokenizer)[-1] == (5, 0.0)


CHARACTERS = st.characters(codec="utf-8", exclude_characters="\ufffd")


@given(st.data())
def test_any_text_and_any_steps(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Against every prefix, one token after the other."""
    parts = st.sampled_from([p.solution for p in problems(5, 40)]) | st.text(CHARACTERS, max_size=6)
    text = "".join(data.draw(st.lists(parts, min_size=1, max_size=3)))
    assume(text)
    finished = data.draw(st.booleans())
    tokens = tokenizer.encode(text)
    sampled = (*tokens, tokenizer.eos_id) if finished else tuple(tokens)
    ends = sorted(data.draw(st.sets(st.integers(1, len(text)), min_size=1, max_size=6)))
    expected: dict[int, list[float]] = {}
    for number, end in enumerate(ends):
        head = text[:end]
        place = next(
            n for n in range(len(tokens)) if tokenizer.decode(tokens[: n + 1]).startswith(head)
        )
        place = len(sampled) - 1 if end == len(text) else place
        expected.setdefault(place, []).append(float(number))
    found = in_tokens([(end, float(n)) for n, end in enumerate(ends)], text, sampled, tokenizer)
    assert found == tuple((place, sum(r) / len(r)) for place, r in expected.items())
    places = [place for place, _ in found]
    assert places == sorted(set(places))


@given(st.lists(st.integers(0, 600), min_size=1, max_size=30), st.data())
def test_any_ids(tokenizer: Tokenizer, ids: list[int], data: st.DataObject) -> None:
    """Special ones, and bytes that are no UTF-8, as an unskilled policy samples them."""
    text = tokenizer.decode(ids)
    assume(text)
    ends = sorted(data.draw(st.sets(st.integers(1, len(text)), min_size=1, max_size=6)))
    found = in_tokens([(end, float(end)) for end in ends], text, ids, tokenizer)
    places = [place for place, _ in found]
    assert places == sorted(set(places))
    assert all(0 <= place < len(ids) for place in places)
