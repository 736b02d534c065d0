"""The small files of a Hugging Face folder: which has the last word, and what is no such file."""

import json

import pytest
import reference_tokenizers

from rft_jax.data.tokenizers.folder_settings import read_settings
from rft_jax.errors import ModelError


def write(folder, **files):
    """Files by their stems."""
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


def test_an_empty_folder_says_nothing(tmp_path):
    found = read_settings(tmp_path)
    assert (found.roles, found.added, found.also_special, found.also_ends) == ({}, {}, (), ())
    assert found.adds_bos is None
    assert found.prefix_every_part
    assert found.chat_template is None


def test_a_token_is_text_or_an_object(tmp_path):
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": True},
        "sep_token": None,
    }
    roles = read_settings(write(tmp_path, tokenizer_config=config)).roles
    assert [(role, t.name, dict(t.flags)) for role, t in roles.items()] == [
        ("bos_token", "<s>", {}), ("eos_token", "</s>", {"lstrip": True}),
    ]  # fmt: skip


@pytest.mark.parametrize(("new_format", "eos"), [(False, "of the map"), (True, "of the config")])
def test_which_file_has_the_last_word(tmp_path, new_format, eos):
    config = {"eos_token": "of the config"}
    if new_format:
        config["added_tokens_decoder"] = {"5": {"content": "x", "special": True}}
    others = {"eos_token": {"content": "of the map"}, "bos_token": "of the map"}
    found = read_settings(write(tmp_path, tokenizer_config=config, special_tokens_map=others))
    assert (found.roles["eos_token"].name, found.roles["bos_token"].name) == (eos, "of the map")


def test_the_older_file_of_added_tokens(tmp_path):
    write(
        tmp_path,
        tokenizer_config={"eos_token": "<e>", "additional_special_tokens": ["<x>"]},
        added_tokens={"<e>": 9, "<x>": 10, "word": 11},
    )
    added = read_settings(tmp_path).added
    assert {token: (named.name, named.flags["special"]) for token, named in added.items()} == {
        9: ("<e>", True), 10: ("<x>", True), 11: ("word", False),
    }  # fmt: skip


TEMPLATES = {
    "chat_template.jinja": "jinja",
    "tokenizer_config.json": '{"chat_template": "config"}',
    "chat_template.json": '{"chat_template": "json"}',
}


@pytest.mark.parametrize("missing", range(4))
def test_where_the_chat_template_stands(tmp_path, missing):
    """In the first of the files that has one."""
    left = list(TEMPLATES)[missing:]
    for name in left:
        (tmp_path / name).write_text(TEMPLATES[name])
    found = read_settings(tmp_path).chat_template
    if not left:
        assert found is None
        return
    assert (found.text, found.path) == (["jinja", "config", "json"][missing], tmp_path / left[0])


def test_the_template_named_default_is_taken(tmp_path):
    found = read_settings(reference_tokenizers.gemma(tmp_path)).chat_template
    assert found.text == reference_tokenizers.GEMMA_CHAT
    assert found.names == {f"{r}_token": f"<{r}>" for r in ("bos", "eos", "unk", "pad")}


DAMAGED = {
    "no JSON": ("tokenizer_config.json", "{", "cannot be read as JSON (Expecting property name"),
    "no text": ("generation_config.json", b"\xff", "cannot be read as JSON ('utf-8' codec"),
    "no object": ("config.json", "[1]", "it is a JSON list, expected an object: copy or "
                  "download it again."),
    "no token": ("tokenizer_config.json", '{"eos_token": 3}', "eos_token is 3, expected a token or "
                 "an object with its content: fix the file or download it again."),
    "no content": ("tokenizer_config.json", '{"bos_token": {"text": "a"}}',
                   'bos_token is {"text": "a"}, expected a token or an object with its content: '),
    "no ids": ("tokenizer_config.json", '{"added_tokens_decoder": [1]}',
               "added_tokens_decoder is [1], expected an object: "),
    "no id": ("tokenizer_config.json", '{"added_tokens_decoder": {"a": "b"}}',
              'added_tokens_decoder is "a", expected an id, 0 or more: '),
    "no EOS id": ("generation_config.json", '{"eos_token_id": [1, "2x"]}',
                  'eos_token_id is "2x", expected an id, 0 or more: '),
    "null among EOS ids": ("config.json", '{"eos_token_id": [1, null]}',
                           "eos_token_id is null, expected an id, 0 or more: "),
    "null among tokens": ("tokenizer_config.json", '{"additional_special_tokens": [null]}',
                          "additional_special_tokens is null, expected a token or an object with "),
    "negative EOS id": ("config.json", '{"eos_token_id": -1}',
                        "eos_token_id is -1, expected an id, 0 or more: "),
    "no flag": ("tokenizer_config.json", '{"add_bos_token": "yes"}',
                'add_bos_token is "yes", expected true or false: '),
    "no list": ("tokenizer_config.json", '{"additional_special_tokens": 1}',
                "additional_special_tokens is 1, expected a list: "),
    "no default": ("tokenizer_config.json", '{"chat_template": [{"name": "rag", "template": ""}]}',
                   'chat_template is [{"name": "rag", "template": ""}], expected a template, or a '
                   "list with one named default: "),
    "no template": ("chat_template.json", '{"chat_template": 1}',
                    "chat_template is 1, expected a template, or a list with one named default: "),
    "no letters": ("chat_template.jinja", b"\xff", "cannot be read ('utf-8' codec"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_line(tmp_path, case):
    name, content, message = DAMAGED[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError) as error:
        read_settings(tmp_path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)
