"""Folders of published models' tokenizers: the ids and texts that transformers gives."""

import json
import random
import shutil

import pytest
import reference_tokenizers
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from reference_tokenizers import ODD_TEXTS

from rft_jax.data.tokenizers.load import load
from rft_jax.errors import ModelError

MADE = {
    **reference_tokenizers.FOLDERS,
    "llama2, prefix once": lambda folder: reference_tokenizers.llama2(folder, legacy=False),
    "llama2, whole pieces": lambda folder: reference_tokenizers.llama2(
        folder, user_defined_symbols=("[INST]", "\n\n", "\u2581\u2581\u2581")
    ),
    "no dummy prefix": lambda folder: reference_tokenizers.llama2(folder, add_dummy_prefix=False),
}


@pytest.fixture(scope="module", params=MADE)
def both(request, tmp_path_factory):
    folder = MADE[request.param](tmp_path_factory.mktemp("made"))
    return load(folder), reference_tokenizers.transformers_reads(folder)


def as_text(theirs, text):
    return theirs.encode(text, add_special_tokens=False, split_special_tokens=True)


def decoded(theirs, ids):
    return theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts(both, text):
    ours, theirs = both
    ids = ours.encode(text)
    assert ids == as_text(theirs, text)
    assert ours.encode_marked(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids) == decoded(theirs, ids)


@given(st.text())
def test_any_text(both, text):
    ours, theirs = both
    assert ours.encode(text) == as_text(theirs, text)
    assert ours.encode_marked(text) == theirs.encode(text, add_special_tokens=False)


def test_any_ids(both):
    """Among them bytes that are no UTF-8, special ids, and ids that the tokenizer does not have."""
    ours, theirs = both
    source = random.Random(0)
    for _ in range(500):
        ids = [source.randrange(ours.vocab_size + 40) for _ in range(source.randrange(10))]
        ids = [token for token in ids if token < ours.vocab_size or token >= len(theirs)]
        assert ours.decode(ids) == decoded(theirs, ids)


def test_the_facts(both):
    ours, theirs = both
    assert ours.prefix_ids == tuple(theirs("a").input_ids[: -len(ours.encode("a"))])
    assert ours.eos_id == theirs.eos_token_id
    assert ours.pad_id == (theirs.pad_token_id or 0)
    # transformers gives a Gemma tokenizer a mask of its own.
    assert set(theirs.all_special_ids) - set(ours.special) in (set(), {ours.vocab_size})


def test_eos_ids(tmp_path):
    """tokenizer_config's comes first; the other files add theirs, each once."""
    folder = reference_tokenizers.qwen(tmp_path)
    ours = load(folder)
    assert [ours.special[token] for token in ours.eos_ids] == ["<|im_end|>", "<|endoftext|>"]
    (folder / "config.json").write_text('{"eos_token_id": [0, 5]}')
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert load(folder).eos_ids == (ours.eos_id, 7, 0, 5)
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text("{}")
    assert load(folder).eos_ids == (ours.eos_id,)


def change(folder, name="tokenizer_config.json", **fields):
    """Fields of a JSON file; one that becomes None is removed."""
    path = folder / name
    content = (json.loads(path.read_text()) if path.exists() else {}) | fields
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_bos_that_only_the_settings_ask_for(tmp_path):
    """As folders of DeepSeek have it: the post-processor adds nothing, add_bos_token is true."""
    folder = reference_tokenizers.qwen(tmp_path)
    change(folder, add_bos_token=True, bos_token="<|endoftext|>")
    assert load(folder).prefix_ids == (600,)
    change(folder, bos_token=None)
    with pytest.raises(ModelError) as error:
        load(folder)
    assert str(error.value) == (
        f"{folder / 'tokenizer_config.json'}: add_bos_token is true and bos_token is None, which "
        "has no id: fix the file or download it again."
    )


def test_bos_that_the_settings_forbid(tmp_path):
    """Of a SentencePiece model alone; a tokenizer.json has its own say."""
    folder = reference_tokenizers.llama2(tmp_path)
    change(folder, add_bos_token=False)
    assert load(folder).prefix_ids == ()
    change(folder, add_bos_token=None)
    assert load(folder).prefix_ids == (1,)


def test_a_sentencepiece_model_names_its_own_special_tokens(tmp_path):
    folder = reference_tokenizers.llama2(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ eos_token }}"}))
    ours = load(folder)
    assert (ours.prefix_ids, ours.eos_ids) == ((1,), (2,))
    assert ours.chat_template.names == {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    }  # fmt: skip


@pytest.mark.parametrize("where", ["tokenizer_config.json", "added_tokens.json"])
def test_tokens_beyond_the_sentencepiece_model(tmp_path, where):
    """As chat models have that were trained on from a model without turns."""
    folder = reference_tokenizers.llama2(tmp_path)
    if where == "added_tokens.json":
        change(folder, where, **{"<|end|>": 600, "<|user|>": 601})
    else:
        added = {"600": {"content": "<|end|>", "special": True}, "601": {"content": "<|user|>"}}
        change(folder, added_tokens_decoder=added)
    change(folder, eos_token="<|end|>")
    ours, theirs = load(folder), reference_tokenizers.transformers_reads(folder)
    assert (ours.eos_id, ours.vocab_size) == (600, 602)
    for text in ("a<|end|>b", "<|user|>\n1", "<|user|> 1 <|end|>", "<|user|"):
        assert ours.encode(text) == as_text(theirs, text)
        assert ours.encode_marked(text) == theirs.encode(text, add_special_tokens=False)
    change(folder, added_tokens_decoder={"650": {"content": "<|end|>", "special": True}})
    with pytest.raises(ModelError) as error:
        load(folder)
    assert str(error.value) == (
        f"{folder}: '<|end|>' has id 600 in the vocabulary and 650 in tokenizer_config.json or "
        "added_tokens.json: download the folder again."
    )


@given(st.text(alphabet=st.characters(exclude_characters="\u2581", exclude_categories=["Cs"])))
def test_a_sentencepiece_model_alone_gives_its_own_ids(both, text):
    """Where transformers departs from the model that a policy was trained with, so does this: for
    spaces at the start, unless `legacy` is true."""
    ours, _ = both
    path = ours.path / "tokenizer.model"
    if not path.exists() or text.startswith(" "):
        return
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert ours.encode(text) == model.encode(text)


def test_names_of_pieces_that_are_no_text(tmp_path):
    """With pieces that are cut out first, the library takes whole parts as they stand."""
    folder = reference_tokenizers.llama2(
        tmp_path, add_dummy_prefix=False, user_defined_symbols=("[INST]",)
    )
    ours = load(folder)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in ("<s>", "[INST]</s>", "<0x41>[INST]<0x0A>", "<unk>", "[INST]"):
        assert ours.encode(text) == model.encode(text)
        assert ours.decode(ours.encode(text)) == text


def test_a_text_is_neither_cut_nor_filled(tmp_path):
    folder = reference_tokenizers.qwen(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=6)
    backend.save(str(folder / "tokenizer.json"))
    ours = load(folder)
    assert ours.decode(ours.encode("12345678")) == "12345678"
    assert len(ours.encode("1")) == 1


def without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def bare_letters(folder):
    """A tokenizer that has no ids for what it has not seen."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.decoder = tokenizers.decoders.Fuse()
    made.train_from_iterator(["a b\n#1"], tokenizers.trainers.BpeTrainer(show_progress=False))
    made.add_special_tokens(["<|im_end|>"])
    made.save(str(folder / "tokenizer.json"))
    change(folder, added_tokens_decoder=None, pad_token=None)
    (folder / "generation_config.json").unlink()
    (folder / "config.json").unlink()


def folding(folder):
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    made.save(str(folder / "tokenizer.json"))


def without_eos(folder):
    change(folder, eos_token=None)
    for name in ("generation_config.json", "config.json"):
        (folder / name).unlink()


def with_only(name):
    def replace_files(folder):
        without_tokenizer(folder)
        (folder / name).write_bytes(b"{}")

    return replace_files


def of_tiktoken(folder):
    without_tokenizer(folder)
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\nIw== 2\n")


BROKEN = {
    "Mistral's own": (
        with_only("tekken.json"),
        "{folder}: there is neither tokenizer.json nor tokenizer.model but tekken.json, a format "
        "that only Mistral uses (a newer revision may have a tokenizer.json): name the folder",
    ),
    "older format": (
        with_only("vocab.json"),
        "{folder}: there is neither tokenizer.json nor tokenizer.model but vocab.json, the older "
        "format of BPE (",
    ),
    "another name": (
        with_only("spiece.model"),
        "{folder}: there is neither tokenizer.json nor tokenizer.model but spiece.model, a "
        "SentencePiece model of another name (name this file): ",
    ),
    "tiktoken": (
        of_tiktoken,
        "{folder}/tokenizer.model: a vocabulary of tiktoken (Llama 3's original format), without "
        "its pattern of words: name the folder of the model in the Hugging Face format, which has "
        "a tokenizer.json (it is the one that the folder `original` lies in).",
    ),
    "a settings file of brackets": (
        lambda folder: (folder / "tokenizer_config.json").write_text("[" * 200_000),
        "{folder}/tokenizer_config.json: cannot be read as JSON (nested more than 100 deep): copy",
    ),
    "a tokenizer of brackets": (
        lambda folder: (folder / "tokenizer.json").write_text("[" * 200_000),
        "{folder}/tokenizer.json: no tokenizer (nested more than 100 deep): copy",
    ),
    "no tokenizer": (
        without_tokenizer,
        "{folder}: there is neither tokenizer.json nor tokenizer.model: name the folder of a model "
        "in the Hugging Face format, or a .model file.",
    ),
    "damaged": (
        lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0", "mod'),
        "{folder}/tokenizer.json: no tokenizer (Unterminated string starting at: line 1 column 20 "
        "(char 19)): copy or download it again.",
    ),
    "another's": (
        lambda folder: (folder / "tokenizer.json").write_text("[]"),
        "{folder}/tokenizer.json: no tokenizer (",
    ),
    "folds spaces": (
        folding,
        r"{folder}: the model turns 'a  b\n#### 1' into 'a b #### 1': use one that keeps spaces "
        "and newlines (normalization_rule_name=identity, remove_extra_whitespaces=false).",
    ),
    "loses characters": (
        bare_letters,
        "{folder}: the tokenizer has no ids for '\U0001fad9' and loses such characters: use one "
        "with byte fallback, or one of bytes.",
    ),
    "no EOS": (
        without_eos,
        "{folder}: no file names an EOS, and outputs end with it: add eos_token to "
        "tokenizer_config.json.",
    ),
    "EOS without id": (
        lambda folder: change(folder, eos_token="<|end|>"),
        "{folder}: eos_token is '<|end|>', which has no id: fix tokenizer_config.json or download "
        "the folder again.",
    ),
    "EOS beyond the ids": (
        lambda folder: change(folder, "generation_config.json", eos_token_id=[600, 900]),
        "{folder}/generation_config.json: eos_token_id is 900 and the tokenizer's ids are 0 to "
        "604: fix the file or download the folder again.",
    ),
}


def multiplying(part, *steps):
    def damage(folder):
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        kind = {
            "normalizer": "normalizers",
            "decoder": "decoders",
            "pre_tokenizer": "pretokenizers",
        }
        content[part] = {"type": "Sequence", kind[part]: list(steps)}
        path.write_text(json.dumps(content))

    return damage


def replacing(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


OF_BYTES = {
    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False,
}  # fmt: skip
MULTIPLYING = {
    "letters": multiplying("normalizer", *[replacing({"String": "a"}, "a" * 10)] * 9),
    "words": multiplying("normalizer", *[replacing({"String": "zq"}, "zq" * 10)] * 9),
    "any": multiplying("normalizer", *[replacing({"Regex": "."}, "x" * 10)] * 9),
    "between": multiplying("normalizer", *[replacing({"Regex": ""}, "x")] * 30),
    "bytes": multiplying("pre_tokenizer", *[OF_BYTES] * 30),
    "decoding": multiplying("decoder", *[replacing({"String": "a"}, "a" * 10)] * 9),
}


@pytest.mark.parametrize("name", MULTIPLYING)
def test_a_tokenizer_that_multiplies_characters(tmp_path, name):
    folder = reference_tokenizers.qwen(tmp_path)
    MULTIPLYING[name](folder)
    with pytest.raises(
        ModelError, match=r"tokenizer.json: its steps make up to [0-9,]+ characters"
    ):
        load(folder)


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_cannot_serve(tmp_path, name, capfd):
    damage, message = BROKEN[name]
    folder = reference_tokenizers.qwen(tmp_path)
    damage(folder)
    with pytest.raises(ModelError) as error:
        load(folder)
    assert str(error.value).startswith(message.format(folder=folder))
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_sentencepiece_model_without_byte_fallback(tmp_path):
    folder = reference_tokenizers.llama2(tmp_path, byte_fallback=False, vocab_size=300)
    with pytest.raises(ModelError, match="a character of it has no piece; use a model with by"):
        load(folder)


def test_a_folder_without_other_files(tmp_path):
    source = reference_tokenizers.llama2(tmp_path / "whole")
    (tmp_path / "bare").mkdir()
    shutil.copy(source / "tokenizer.model", tmp_path / "bare")
    bare = load(tmp_path / "bare")
    assert (bare.prefix_ids, bare.eos_ids, bare.chat_template) == ((1,), (2,), None)
