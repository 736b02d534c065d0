"""What ends an output: in a chat, what transformers' rendering of the same two turns ends with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference_tokenizers as reference

from rft_jax.config import DataConfig
from rft_jax.data.prompts import (
    completion_tokens,
    ends_text,
    prompt_text,
    prompt_tokens,
    split_by_length,
    with_ends,
)
from rft_jax.data.tokenizers.load import load
from rft_jax.errors import ConfigError, DataError, ModelError
from rft_jax.types import Question

CHAT = DataConfig(train="a", validation="a", prompt_format="chat")
TEXT = replace(CHAT, prompt_format="text")

LLAMA2_CHAT = (
    "{% for m in messages %}{% set text = m.content.strip() %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + text + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + text + ' ' + eos_token }}{% endif %}{% endfor %}"
)
DEEPSEEK_CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}User: {{ m.content }}\n\n{% else %}"
    "Assistant: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
QWEN3_CHAT = (
    "{%- for m in messages %}\n"
    "  {{- '<|im_start|>' + m.role + '\\n' }}\n"
    "  {%- if m.role == 'assistant' %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}\n"
    "  {{- m.content + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "  {{- '<|im_start|>assistant\\n' }}\n"
    "  {%- if enable_thinking is defined and enable_thinking is false %}\n"
    "    {{- '<think>\\n\\n</think>\\n\\n' }}\n"
    "  {%- endif %}\n"
    "{%- endif %}\n"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI_CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)
"""Written for these tests in the manner of the models."""

BASE = {"eos_token": "<|endoftext|>"}
"""Of a base model whose template came with it: the end of turn is not its EOS."""


def folder(kind: str, path: Path, chat: str = "", **config: Any) -> Path:
    made = reference.FOLDERS[kind](path)
    file = made / "tokenizer_config.json"
    template = {"chat_template": chat} if chat else {}
    if kind == "llama3" and chat:
        (made / "chat_template.jinja").unlink()
    file.write_text(json.dumps(json.loads(file.read_text()) | config | template))
    if config.get("eos_token") == "<|endoftext|>":
        (made / "generation_config.json").write_text('{"eos_token_id": 600}')
    return made


FAMILIES = {
    # name: kind of tokenizer, chat template, settings, end of a demonstration, ids' names
    "Llama 2": ("llama2", LLAMA2_CHAT, {}, " </s>", ["</s>"]),
    "Llama 3": ("llama3", "", {"eos_token": "<|end_of_text|>"}, "<|eot_id|>",
                ["<|eot_id|>", "<|end_of_text|>"]),
    "DeepSeek LLM": ("llama3", DEEPSEEK_CHAT, {"eos_token": "<|end_of_text|>"},
                     "<|end_of_text|>", ["<|end_of_text|>", "<|eot_id|>"]),
    "Mistral": ("llama2", "", {}, "</s>", ["</s>"]),
    "Qwen2 instruct": ("qwen", "", {}, "<|im_end|>", ["<|im_end|>", "<|endoftext|>"]),
    "Qwen2 base": ("qwen", "", BASE, "<|im_end|>", ["<|im_end|>", "<|endoftext|>"]),
    "Qwen3": ("qwen", QWEN3_CHAT, {}, "<|im_end|>", ["<|im_end|>", "<|endoftext|>"]),
    "Gemma 2 and 3": ("gemma", "", {}, "<end_of_turn>", ["<end_of_turn>", "<eos>"]),
    "Phi": ("qwen", PHI_CHAT, BASE, "<|im_end|>", ["<|im_end|>", "<|endoftext|>"]),
    "marked": ("qwen", MARKED, BASE, "<|im_end|>", ["<|im_end|>", "<|endoftext|>"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_chat_ends_as_transformers_renders_it(tmp_path: Path, name: str) -> None:
    kind, chat, config, end, eos = FAMILIES[name]
    path = folder(kind, tmp_path, chat, **config)
    tokenizer = with_ends(load(path), CHAT)
    assert [tokenizer.special[token] for token in tokenizer.eos_ids] == eos
    assert ends_text(tokenizer).startswith(f"a demonstration ends with {end!r}, ")
    theirs = reference.transformers_reads(path)
    question, answer = "12+11?", "It is 23"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    ids = theirs.apply_chat_template(turns, return_dict=False)
    trained = completion_tokens(answer, tokenizer)
    if kind == "llama2":  # a space before the answer is its dummy prefix here
        assert ids[-3:] == trained[-3:]
        return
    whole = prompt_tokens(question, CHAT, tokenizer) + trained
    if name == "Qwen3":
        calm = replace(CHAT, template_variables=("enable_thinking=false",))
        whole = prompt_tokens(question, calm, tokenizer) + trained
    if name == "DeepSeek LLM":  # a space before the answer
        ids = [*ids[: len(whole) - len(trained)], *theirs.encode(answer)[1:], ids[-1]]
    assert ids[: len(whole)] == whole
    # What follows is the next turn's, which nobody samples.
    assert theirs.decode(ids[len(whole) :]).strip() in ("", "<|endoftext|>")


def test_the_trained_tokens_are_those_that_a_template_marks(tmp_path: Path) -> None:
    path = folder("qwen", tmp_path, MARKED, **BASE)
    turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "It is 2"}]
    read = reference.transformers_reads(path).apply_chat_template(
        turns, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(read["input_ids"], read["assistant_masks"], strict=True)
    marked = [token for token, mark in pairs if mark]
    assert completion_tokens("It is 2", with_ends(load(path), CHAT)) == marked


WITHOUT = {
    "no token follows": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "no answers": "{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}",
    "refuses answers": "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ raise_exception('none') }}{% endif %}{{ m.content }}{% endfor %}",
}


@pytest.mark.parametrize("name", WITHOUT)
def test_a_template_that_ends_no_answer(tmp_path: Path, name: str) -> None:
    before = load(folder("qwen", tmp_path, WITHOUT[name], **BASE))
    tokenizer = with_ends(before, CHAT)
    assert tokenizer.eos_ids == before.eos_ids == (600,)
    assert completion_tokens("2", tokenizer) == completion_tokens("2", before)


def test_an_end_that_is_added_and_not_special(tmp_path: Path) -> None:
    """A question and a solution that name it are refused: it would end the turn."""
    path = folder("qwen", tmp_path, "{{ messages[0].content }}{% if messages[1] is defined %}"
                  "{{ messages[1].content }}</tool>{% endif %}")  # fmt: skip
    tokenizer = with_ends(load(path), CHAT)
    assert tokenizer.special[tokenizer.eos_id] == "</tool>"
    with pytest.raises(DataError, match="its prompt names '</tool>', a special token of"):
        prompt_tokens("a</tool>", CHAT, tokenizer)
    row = Question(id=3, text="a", answer="", solution="b</tool>c")
    with pytest.raises(DataError) as error:
        split_by_length([row], source="s", data=CHAT, tokenizer=tokenizer, demonstrations=True)
    assert str(error.value) == (
        "s: the solution of question 3 holds '</tool>', a token that ends an output: leave the "
        "question out, or choose other data.stop_tokens."
    )


def test_stop_tokens(tmp_path: Path) -> None:
    tokenizer = load(folder("qwen", tmp_path, **BASE))
    (line,) = tokenizer.encode("\n")
    for data, first in ((TEXT, [600]), (CHAT, [602, 600])):
        data = replace(data, stop_tokens=("<|im_start|>", "\n"))
        ends = with_ends(tokenizer, data)
        assert ends.eos_ids == (*first, 601, line)
    with pytest.raises(ConfigError) as error:
        with_ends(tokenizer, replace(TEXT, stop_tokens=("<|end|>",)))
    assert str(error.value) == (
        f"data.stop_tokens holds '<|end|>', which is {len(tokenizer.encode('<|end|>'))} tokens of "
        f"{tmp_path}: name a single one."
    )


def test_a_text_ends_with_eos(tmp_path: Path) -> None:
    tokenizer = load(folder("qwen", tmp_path))
    assert with_ends(tokenizer, TEXT).eos_ids == tokenizer.eos_ids
    assert prompt_text("1+1?", TEXT, tokenizer) == "1+1?\n"


SILENT = {
    "nothing": "hello",
    "parts": "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
    "a few letters": "{{ messages[-1].content[:5] }}",
}


@pytest.mark.parametrize("name", SILENT)
def test_a_template_that_leaves_the_question_out(tmp_path: Path, name: str) -> None:
    path = folder("qwen", tmp_path, SILENT[name])
    with pytest.raises(ModelError) as error:
        with_ends(load(path), CHAT)
    assert str(error.value).startswith(
        f"{path}/tokenizer_config.json: the chat template does not print the user's message as it "
        "stands ('Zq7 asked 19?'), so that questions could be asked alike; "
    )
    assert "\n" not in str(error.value)


def test_a_template_that_cuts_a_long_question(tmp_path: Path) -> None:
    tokenizer = load(folder("qwen", tmp_path, "{{ messages[-1].content[:50] }}"))
    assert with_ends(tokenizer, CHAT).eos_ids == tokenizer.eos_ids
    with pytest.raises(ModelError, match="does not print the user's message as it stands"):
        prompt_tokens("1+" * 30, CHAT, tokenizer)


def test_a_template_that_leaves_the_system_message_out(tmp_path: Path) -> None:
    path = folder("qwen", tmp_path, "{{ messages[-1].content }}{{ '<|im_end|>' }}")
    tokenizer = load(path)
    with_ends(tokenizer, CHAT)
    with pytest.raises(ModelError) as error:
        with_ends(tokenizer, replace(CHAT, system="Be brief."))
    assert str(error.value) == (
        f"{path}: data.system is set and the chat template does not print it: leave it empty, or "
        "write it into data.prompt_template."
    )


def test_variables_reach_the_template(tmp_path: Path) -> None:
    tokenizer = load(folder("qwen", tmp_path, QWEN3_CHAT))
    for text, calm in (("false", True), ("False", True), ("true", False), ("no", False)):
        data = replace(CHAT, template_variables=(f"enable_thinking={text}",))
        assert prompt_text("1+1?", data, tokenizer).endswith("</think>\n\n") is calm
    with pytest.raises(ModelError) as error:
        with_ends(tokenizer, replace(CHAT, template_variables=("enable_thinkin=false",)))
    assert str(error.value) == (
        f"{tmp_path}/tokenizer_config.json: data.template_variables sets enable_thinkin, which the "
        "chat template does not read; it reads add_generation_prompt, enable_thinking, messages."
    )
