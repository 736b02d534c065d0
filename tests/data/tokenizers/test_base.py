"""What holds of tokenizers of every kind."""

import pytest
import reference_tokenizers
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.data.tokenizers.load import load
from rft_jax.errors import ModelError


@pytest.fixture(scope="module", params=["model", *reference_tokenizers.FOLDERS])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "model":
        reference_tokenizers.llama2(folder, add_dummy_prefix=False)
        return load(folder / "tokenizer.model")
    return load(reference_tokenizers.FOLDERS[request.param](folder))


@given(st.text())
def test_a_text_never_becomes_a_special_token(tokenizer, text):
    for name in tokenizer.special.values():
        ids = tokenizer.encode(text + name)
        assert all(0 <= token < tokenizer.vocab_size for token in ids)
        assert not set(ids) & set(tokenizer.special)
        # And nothing is lost that is not in `load`'s list.
        assert tokenizer.decode(ids).endswith(name)


@given(st.lists(st.integers(0, 900), max_size=12))
def test_what_is_no_text_vanishes(tokenizer, ids):
    text = [i for i in ids if i < tokenizer.vocab_size and i not in tokenizer.special]
    assert tokenizer.decode(ids) == tokenizer.decode(text)


def test_the_prefix_and_the_ends_are_special(tokenizer):
    assert {*tokenizer.prefix_ids, *tokenizer.eos_ids} <= set(tokenizer.special)
    assert tokenizer.eos_id == tokenizer.eos_ids[0]
    assert not set(tokenizer.eos_ids) & set(tokenizer.prefix_ids)


def test_a_negative_id_is_an_error(tokenizer):
    with pytest.raises(ModelError, match="cannot decode id -2: its ids are 0 to "):
        tokenizer.decode([-2])


def test_half_of_a_surrogate_pair_is_an_error(tokenizer):
    for encode in (tokenizer.encode, tokenizer.encode_marked):
        with pytest.raises(ModelError, match="character 1 is half of a surrogate pair"):
            encode("a\udc00")
