"""SentencePiece models: an exact round trip, deterministic training, one-line errors."""

import io
import threading

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from rft_jax.data.arithmetic import problems
from rft_jax.data.tokenizers.load import load
from rft_jax.data.tokenizers.sentencepiece_model import train
from rft_jax.errors import ModelError


def corpus(count=400):
    return [text for p in problems(5, count) for text in (p.question + "\n", p.solution)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train(corpus(), tmp_path_factory.mktemp("tokenizer") / "t.model", 512)


def foreign(path, **changes):
    """A model that was not trained here."""
    model = io.BytesIO()
    settings = {
        "vocab_size": 340,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus(20)), model_writer=model, **settings | changes
    )
    path.write_bytes(model.getvalue())
    return path


@given(st.text())
@example("\u2581")
@example(" \u2581\u2581 a\u2581")
@example("\0a\0")
@example(" leading")
@example("trailing ")
@example("two  spaces\r\n\r\ttab\n\n")
@example("<s></s><unk><pad><0x41>")
@example("\ufeff\ufffd\u2028\x85\x0b\U0010ffff")
@example("e\u0301 \u00e9 \ufb01 \u00bd")
@example("")
def test_nothing_is_lost(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(3 < token < tokenizer.vocab_size for token in ids)


@given(st.text(), st.text())
def test_parts_join(tokenizer, before, after):
    """A prompt and its output are encoded apart and decoded together."""
    assert tokenizer.decode(tokenizer.encode(before) + tokenizer.encode(after)) == before + after


@given(st.lists(st.integers(0, 600), max_size=30))
def test_any_ids_decode(tokenizer, ids):
    """Special ones, and ones beyond the vocabulary, are no text, not even between two bytes."""
    text = tokenizer.decode(ids)
    assert text == tokenizer.processor.decode([token for token in ids if 3 < token < 512])
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_ids(tokenizer):
    assert (tokenizer.pad_id, tokenizer.prefix_ids, tokenizer.eos_ids) == (0, (1,), (2,))
    assert tokenizer.eos_id == 2
    assert tokenizer.special == {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>"}
    assert tokenizer.vocab_size == 512
    assert tokenizer.chat_template is None
    assert tokenizer.decode([1, *tokenizer.encode("a b"), 3, 0, 2]) == "a b"


@pytest.mark.parametrize(
    "parts",
    [["<s>", "a b", "</s>"], ["</s>", "</s>"], ["a", "<pad>"], ["<s"], [], ["<s>", "\u2581"]],
)
def test_names_of_special_tokens_count_only_where_they_are_marks(tokenizer, parts):
    text, ids = "".join(parts), {name: token for token, name in tokenizer.special.items()}
    assert not set(tokenizer.encode(text)) & set(tokenizer.special)
    expected = [[ids[part]] if part in ids else tokenizer.encode(part) for part in parts]
    assert tokenizer.encode_marked(text) == [token for part in expected for token in part]


def test_digits_stand_alone(tokenizer):
    for token in range(tokenizer.vocab_size):
        piece = tokenizer.processor.id_to_piece(token)
        if not tokenizer.processor.is_byte(token):
            assert len(piece) == 1 or not any(letter.isdigit() for letter in piece)


def test_words_of_the_corpus_are_whole(tokenizer):
    problem = next(problems(5, 1))
    assert len(tokenizer.encode(problem.question)) < 1.7 * len(problem.question.split())


def test_training_is_deterministic_and_leaves_only_the_file(tokenizer, tmp_path):
    again = train(iter(corpus()), tmp_path / "new" / "folder" / "t.model", 512)
    assert again.path.read_bytes() == tokenizer.path.read_bytes()
    assert [path.name for path in again.path.parent.iterdir()] == ["t.model"]


def test_loading_gives_the_same_ids(tokenizer):
    loaded = load(str(tokenizer.path))
    text = "Mia has 12 shells.\n#### 12 \u2581"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert (loaded.path, loaded.vocab_size) == (tokenizer.path, 512)


def test_many_threads_may_use_one(tokenizer):
    texts = corpus(50)
    wanted = [tokenizer.encode(text) for text in texts]
    found = [None] * 4

    def work(slot):
        found[slot] = [tokenizer.encode(text) for text in texts]

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 4


@pytest.mark.slow
def test_long_texts_are_trained_on_too(tmp_path):
    long = "zyx " * 4000
    assert "zyx" in {
        train(["a b", long], tmp_path / "t.model", 267).processor.id_to_piece(i).strip("\u2581")
        for i in range(267)
    }


def test_a_vocabulary_too_large_names_the_largest(tmp_path, capfd):
    path = tmp_path / "t.model"
    with pytest.raises(ModelError) as error:
        train(["abc abc"], path, 512)
    assert str(error.value) == (
        f"{path}: tokenizer.vocab_size is 512: the corpus yields 270 pieces at most; set it to 270."
    )
    assert not path.exists()
    train(["abc abc"], path, 270)
    assert capfd.readouterr() == ("", "")


def test_a_vocabulary_too_small_names_the_smallest(tmp_path):
    path = tmp_path / "t.model"
    with pytest.raises(ModelError, match="261: the corpus's characters need 272 pieces; set"):
        train(["abcdefghijk"], path, 261)
    tokenizer = train(["abcdefghijk"], path, 272)
    assert tokenizer.decode(tokenizer.encode(" a b")) == " a b"


def test_another_failure_of_training_is_one_line(tmp_path):
    with pytest.raises(ModelError) as error:
        train(["abc"], tmp_path / "t.model", -1)
    assert "cannot train a tokenizer with tokenizer.vocab_size is -1" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_a_corpus_without_text(tmp_path, texts):
    with pytest.raises(ModelError, match=r"cannot train a tokenizer: tokenizer.corpus holds"):
        train(texts, tmp_path / "t.model", 300)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ModelError, match=r"no.model: cannot read the tokenizer \(No such file"):
        load(tmp_path / "no.model")


@pytest.mark.parametrize("content", [b"", b"junk", b"\x00" * 99])
def test_a_file_that_is_no_model(tmp_path, capfd, content):
    (tmp_path / "t.model").write_bytes(content)
    with pytest.raises(ModelError) as error:
        load(tmp_path / "t.model")
    assert str(error.value) == (
        f"{tmp_path / 't.model'}: no SentencePiece model ({len(content)} bytes): copy it again, or "
        "delete it to train a new one."
    )
    assert capfd.readouterr() == ("", "")


def test_a_vocabulary_of_tiktoken(tmp_path):
    (tmp_path / "t.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(ModelError, match=r"t\.model: a vocabulary of tiktoken \(Llama 3's"):
        load(tmp_path / "t.model")


def test_a_file_cut_short(tokenizer, tmp_path):
    content = tokenizer.path.read_bytes()
    (tmp_path / "t.model").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"t\.model: no SentencePiece model"):
        load(tmp_path / "t.model")


@pytest.mark.parametrize(("name", "setting"), [("BOS", "bos_id"), ("EOS", "eos_id")])
def test_a_model_without_bos_or_eos(tmp_path, name, setting):
    with pytest.raises(ModelError, match=f"the model has no {name} piece"):
        load(foreign(tmp_path / "t.model", **{setting: -1}))


def test_a_model_that_folds_newlines(tmp_path):
    path = foreign(tmp_path / "t.model", normalization_rule_name="nmt_nfkc")
    with pytest.raises(ModelError, match="use one that keeps spaces and newlines"):
        load(path)


def test_a_foreign_model_of_the_usual_shape(tmp_path):
    tokenizer = load(foreign(tmp_path / "t.model"))  # a dummy prefix, no padding id
    assert (tokenizer.prefix_ids, tokenizer.eos_ids, tokenizer.pad_id) == ((1,), (2,), 0)
    assert tokenizer.special == {0: "<unk>", 1: "<s>", 2: "</s>"}
    for text in ("3*6=18\n#### 18", " a", "a "):
        assert tokenizer.encode(text) == tokenizer.processor.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_a_dummy_prefix_loses(tmp_path):
    """As `load` says: parts get a space between, and U+2581 is one."""
    tokenizer = load(foreign(tmp_path / "t.model"))
    assert tokenizer.decode(tokenizer.encode("a") + tokenizer.encode("b")) == "a b"
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"
    exact = load(foreign(tmp_path / "e.model", add_dummy_prefix=False))
    assert exact.decode(exact.encode("a") + exact.encode("\u2581b")) == "a\u2581b"


def test_a_character_without_a_piece(tmp_path):
    tokenizer = load(foreign(tmp_path / "t.model", byte_fallback=False, vocab_size=100))
    with pytest.raises(ModelError, match="a character of it has no piece; use a model"):
        tokenizer.encode("a \u2603")


def test_half_of_a_surrogate_pair(tokenizer, tmp_path):
    with pytest.raises(ModelError, match="character 2 is half of a surrogate pair"):
        tokenizer.encode("ab\ud800" + "c" * 100)
    with pytest.raises(ModelError, match="character 0 is half of a surrogate pair"):
        train(["a", "\ud800"], tmp_path / "t.model", 300)


def test_a_negative_id(tokenizer):
    with pytest.raises(ModelError, match="cannot decode id -1: its ids are 0 to 511; use the"):
        tokenizer.decode([5, -1])


def test_a_file_of_a_folder(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer.json: a file of a Hugging Face folder: "):
        load(tmp_path / "tokenizer.json")
