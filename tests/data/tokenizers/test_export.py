"""Exported tokenizers: what is written reads as what was."""

import pytest
import reference_tokenizers
from reference_tokenizers import ODD_TEXTS

from rft_jax.data.tokenizers.from_sentencepiece import SPACE_MARK
from rft_jax.data.tokenizers.load import load
from rft_jax.data.tokenizers.sentencepiece_model import train


def written(tokenizer, folder):
    folder.mkdir()
    for name, content in tokenizer.files().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", reference_tokenizers.FOLDERS)
def test_a_published_tokenizer_is_its_own_files(tmp_path, name):
    source = reference_tokenizers.FOLDERS[name](tmp_path / "source")
    (source / "model.safetensors").write_bytes(b"0")
    ours = load(source)
    copy = written(ours, tmp_path / "copy")
    of_model = {"config.json", "generation_config.json", "model.safetensors"}
    there = {path.name for path in source.iterdir()} - of_model
    assert {path.name for path in copy.iterdir()} == there
    for file in there:
        assert (copy / file).read_bytes() == (source / file).read_bytes()
    again = load(copy)
    assert again.eos_id == ours.eos_id
    assert again.chat_template.text == ours.chat_template.text
    theirs = reference_tokenizers.transformers_reads(copy)
    for text in ODD_TEXTS:
        ids = ours.encode(text)
        assert again.encode(text) == ids
        assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == ids


def test_a_trained_tokenizer_is_written_in_both_formats(tmp_path):
    ours = train(reference_tokenizers.corpus(), tmp_path / "t.model", 700)
    folder = written(ours, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    }  # fmt: skip
    of_json, of_model = load(folder), load(folder / "tokenizer.model")
    for text in ODD_TEXTS:
        assert of_model.encode(text) == ours.encode(text)
        if SPACE_MARK not in text:
            assert of_json.encode(text) == ours.encode(text)
