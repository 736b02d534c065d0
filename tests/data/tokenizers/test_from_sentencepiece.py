"""SentencePiece models in the tokenizers library: the same ids, and how transformers reads them."""

import io
import json
import random
from pathlib import Path

import pytest
import reference_tokenizers
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st
from reference_tokenizers import ODD_TEXTS

from rft_jax.data.tokenizers.from_sentencepiece import SPACE_MARK, convert
from rft_jax.data.tokenizers.load import load
from rft_jax.data.tokenizers.sentencepiece_model import train
from rft_jax.errors import ModelError

WITHOUT_MARK = st.text(
    st.characters(exclude_characters=SPACE_MARK, exclude_categories=["Cs"]), max_size=40
)
JSON_FILES = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    return train(reference_tokenizers.corpus(), path, 700)


@pytest.fixture(scope="module")
def folder(ours, tmp_path_factory):
    made = tmp_path_factory.mktemp("exported")
    for name in JSON_FILES:
        (made / name).write_bytes(ours.files()[name])
    return made


@pytest.fixture(scope="module")
def theirs(folder):
    return reference_tokenizers.transformers_reads(folder)  # without a warning


def ids_of(theirs, text):
    return theirs.encode(text, add_special_tokens=False, split_special_tokens=True)


@given(WITHOUT_MARK)
@example("  two  spaces\r\n\ttab\n\n ")
@example("<s></s><unk><pad><0x41>")
@example("\0\U0010ffff\ufeff\ufffd")
def test_ids_and_texts_are_the_same(ours, theirs, text):
    ids = ours.encode(text)
    assert ids_of(theirs, text) == ids
    assert theirs.decode(ids) == text


def test_odd_texts_are_the_same(ours, theirs):
    for text in (text for text in ODD_TEXTS if SPACE_MARK not in text):
        assert ids_of(theirs, text) == ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ours.encode_marked(text)
        assert theirs.decode(ours.encode(text)) == text


def test_the_special_tokens_are_the_same(ours, theirs):
    assert theirs("a").input_ids == [*ours.prefix_ids, *ours.encode("a")]
    assert (theirs.bos_token_id, theirs.eos_token_id) == (*ours.prefix_ids, *ours.eos_ids)
    assert (theirs.pad_token_id, theirs.unk_token_id) == (ours.pad_id, ours.unk_id)
    assert set(theirs.all_special_ids) == set(ours.special)
    assert len(theirs) == ours.vocab_size


def test_what_transformers_reads_otherwise(ours, theirs):
    """As `files` says."""
    assert ours.decode(ours.encode("a\u2581b")) == "a\u2581b"
    assert theirs.decode(ids_of(theirs, "a\u2581b")) == "a b"
    assert theirs.encode("<s>", add_special_tokens=False) == [1] != ours.encode("<s>")
    whole, broken = (ours.processor.piece_to_id(piece) for piece in ("<0x41>", "<0xFF>"))
    assert ours.decode([whole, broken]) == "A\ufffd"
    assert theirs.decode([whole, broken]) == "\ufffd\ufffd"


def test_we_read_our_files_too(ours, folder):
    again = load(folder)
    assert (again.prefix_ids, again.eos_ids, again.pad_id) == ((1,), (2,), 0)
    assert again.special == ours.special
    for text in (text for text in ODD_TEXTS if SPACE_MARK not in text):
        assert again.encode(text) == ours.encode(text)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3_text"])
def test_the_kind_of_model_beside_it_changes_nothing(ours, tmp_path, family):
    for name in JSON_FILES:
        (tmp_path / name).write_bytes(ours.files()[name])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    read = reference_tokenizers.transformers_reads(tmp_path)
    for text in ("Mia has 12 shells.\n#### 12", " a  b "):
        assert ids_of(read, text) == ours.encode(text)
        assert read.decode(ours.encode(text)) == text


def trained_on_few_letters(seed: int) -> bytes:
    """A model whose pieces overlap in every way, as the corpus is random."""
    source = random.Random(seed)
    letters = source.choice(["ab", "ab ", "aab c1"])
    texts = ["".join(source.choices(letters, k=30)) for _ in range(60)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=300,
        hard_vocab_limit=False, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=seed % 2 == 0, split_by_whitespace=False,
        required_chars=SPACE_MARK, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


@pytest.mark.parametrize("seed", range(6))
def test_merges_that_compete_go_the_same_way(seed):
    model = trained_on_few_letters(seed)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = convert(model, Path("a.model"))
    source = random.Random(seed)
    for _ in range(1000):
        text = "".join(source.choices("aaab c", k=source.randrange(30)))
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text)


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({"model_type": "unigram", "vocab_size": 400}, "a UNIGRAM model"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalised by nmt_nfkc"),
        ({"remove_extra_whitespaces": True}, "one that folds spaces"),
        ({"treat_whitespace_as_suffix": True}, "one with spaces at the ends of words"),
        ({"bos_id": -1}, "one without BOS"),
    ],
)
def test_a_model_that_the_format_cannot_hold(changes, obstacle):
    model = reference_tokenizers.sentencepiece_model(**changes)
    with pytest.raises(ModelError) as error:
        convert(model, Path("a.model"))
    assert str(error.value) == (
        f"a.model: the SentencePiece model is {obstacle}, which cannot be turned into a "
        "tokenizer.json here: use a BPE model with BOS, normalization_rule_name=identity and "
        "remove_extra_whitespaces=false, or a folder that has a tokenizer.json."
    )


@pytest.mark.parametrize("content", [b"", b"junk" * 9, b"\x00" * 40])
def test_what_is_no_model(content):
    with pytest.raises(ModelError) as error:
        convert(content, Path("a.model"))
    assert str(error.value) == (
        f"a.model: no SentencePiece model ({len(content)} bytes): copy or download it again."
    )
