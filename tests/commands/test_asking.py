"""What a policy is asked: prompts and shapes from options, the policy's run, or defaults."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import checkpoints
import pytest
import tiny_experiment

from rft_jax.checkpoint.policy import Policy, find
from rft_jax.commands.ask import Asked, ask
from rft_jax.commands.options import Asking
from rft_jax.config import DataConfig, MeshConfig
from rft_jax.data.prompts import prompt_tokens
from rft_jax.errors import ConfigError, DataError, ModelError


class Found(NamedTuple):
    """The policy of a run, that of a published chat model, and questions."""

    run: Policy
    published: Policy
    source: str


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("asking")
    source = tiny_experiment.write_questions(folder)
    config = replace(checkpoints.sft(source), mesh=MeshConfig(-1, 2, 1))
    config = replace(config, data=replace(config.data, prompt_template="Q: {question} "))
    checkpoints.write_run(folder / "work", "sft", config)
    published = find(str(checkpoints.write_published(folder / "qwen")))
    return Found(find(str(folder / "work" / "sft")), published, source)


def prompts(asked: Asked, policy: Policy) -> list[list[int]]:
    return [prompt_tokens(q.text, asked.data, policy.tokenizer) for q in asked.questions]


def test_a_run_is_asked_as_it_was(found: Found, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        asked = ask(Asking(f"{found.source}[2:5]"), found.run)
    assert [question.id for question in asked.questions] == [2, 3, 4]
    assert asked.data == DataConfig(
        train="", validation="", test=f"{found.source}[2:5]", prompt_template="Q: {question} ",
        max_prompt_tokens=max(map(len, prompts(asked, found.run))), max_completion_tokens=8,
    )  # fmt: skip
    assert (asked.mesh, asked.seed, asked.questions_per_batch) == (MeshConfig(-1, 2, 1), 3, 8)
    tokens = len(prompts(asked, found.run)[0])
    assert caplog.messages == [
        "prompt format: text",
        f"first prompt, {tokens} tokens: '<s>Q: 2+0? '; a demonstration ends with '</s>', a "
        "sampled output with '</s>'",
    ]  # fmt: skip


def test_a_published_chat_model(found: Found, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        asked = ask(Asking(found.source, max_completion_tokens=9), found.published)
    data = asked.data
    assert (data.prompt_format, data.prompt_template, data.system) == ("chat", "{question}", "")
    assert (asked.mesh, asked.seed, asked.questions_per_batch) == (MeshConfig(), 0, 64)
    rendered = "<|im_start|>system\nSolve it.<|im_end|>\n<|im_start|>user\n0+0?<|im_end|>\n<|im_st"
    assert caplog.messages[0] == "prompt format: chat"
    assert repr(rendered)[:-1] in caplog.messages[1]
    assert ask(Asking(found.source), found.published).data.max_completion_tokens == 512


def test_a_published_model_that_has_no_template(found: Found, tmp_path: Path) -> None:
    folder = checkpoints.write_published(tmp_path / "base")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    data = ask(Asking(found.source), find(str(folder))).data
    assert (data.prompt_format, data.prompt_template) == ("text", "{question}\n")


def test_an_export_says_how_it_was_asked(found: Found, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(found.published.folder, tmp_path / "export"))
    asked = replace(found.published.data, prompt_template="Q: {question}", system="S").prompting
    (folder / "prompting.json").write_text(json.dumps(asked))
    exported = find(f"hf:{folder}")
    assert ask(Asking(found.source), exported).data.prompting == asked
    text = ask(Asking(found.source, prompt_format="text"), exported).data
    assert (text.prompt_template, text.system) == ("{question}\n", "")
    for damage in ({"prompt_format": "t"}, {"system": 3}, {"train": 1}, {"x": "y"}):
        (folder / "prompting.json").write_text(json.dumps(asked | damage))
        with pytest.raises(ModelError, match=r"prompting.json: it does not say how a question is "):
            ask(Asking(found.source), find(f"hf:{folder}"))


def test_texts_longer_than_the_model_is_made_for(
    found: Found, caplog: pytest.LogCaptureFixture
) -> None:
    longest = ask(
        Asking(found.source, max_completion_tokens=9), found.published
    ).data.max_prompt_tokens
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="rft_jax"):
        ask(Asking(found.source, max_completion_tokens=64 - longest), found.published)
        ask(Asking(found.source, max_completion_tokens=500), found.run)
        assert caplog.messages == []
        ask(Asking(found.source, max_completion_tokens=65 - longest), found.published)
    assert caplog.messages == [
        f"{found.published.name} is made for texts of up to 64 tokens; the longest prompt and "
        "output have 65"
    ]


def test_every_option_has_its_effect(found: Found) -> None:
    tokenizer = found.published.tokenizer
    assert tokenizer.chat_template is not None
    reading = tokenizer.chat_template.text + "{% if messages_of %}{% endif %}"
    template = replace(tokenizer.chat_template, text=reading)
    published = replace(found.published, tokenizer=replace(tokenizer, chat_template=template))
    asked = ask(
        Asking(
            found.source, data_dir="d", prompt_format="chat", prompt_template="Add: {question}",
            system="Be short.", date="2026-01-31", template_variables=("messages_of=1",),
            stop_tokens=("\n",), max_prompt_tokens=70, max_completion_tokens=5,
            seed=11, questions_per_batch=2, mesh=(2, 2, 2),
        ),
        published,
    )  # fmt: skip
    assert asked == Asked(
        source=found.source,
        questions=asked.questions,
        data=DataConfig(
            train="", validation="", test=found.source, data_dir="d", prompt_format="chat",
            prompt_template="Add: {question}", system="Be short.", date="2026-01-31",
            template_variables=("messages_of=1",), stop_tokens=("\n",),
            max_prompt_tokens=70, max_completion_tokens=5,
        ),
        tokenizer=asked.tokenizer,
        mesh=MeshConfig(2, 2, 2),
        seed=11,
        questions_per_batch=2,
    )  # fmt: skip
    assert asked.tokenizer.eos_ids == (*tokenizer.eos_ids, *tokenizer.encode("\n"))


def test_another_format_than_the_runs_has_its_own_defaults(found: Found) -> None:
    assert found.run.config is not None
    data = replace(found.run.config.data, prompt_format="chat", system="S", date="2026-01-31")
    run = replace(found.published, config=replace(found.run.config, data=data))
    same = ask(Asking(found.source), run).data
    assert (same.system, same.date, same.prompt_template) == ("S", "2026-01-31", "Q: {question} ")
    other = ask(Asking(found.source, prompt_format="text"), run).data
    assert (other.system, other.date, other.prompt_template) == ("", "", "{question}\n")
    assert ask(Asking(found.source, system=""), run).data.system == ""


@pytest.mark.parametrize(
    ("of_run", "changes", "kind", "message"),
    [
        (True, {"prompt_format": "chat"}, ModelError,
         "the tokenizer has no chat template, and prompt_format is chat: name a chat model's "
         "folder in tokenizer.path, or set prompt_format to text."),
        (True, {"system": "S"}, ConfigError,
         "system does nothing under prompt_format=text: remove it or set prompt_format to "
         "chat."),
        (True, {"prompt_template": "no place"}, ConfigError,
         "prompt_template is 'no place': it must hold {question} once."),
        (False, {"date": "31.1.2026"}, ConfigError,
         "date is '31.1.2026': a date is expected, YYYY-MM-DD."),
        (True, {"max_prompt_tokens": 4}, ConfigError,
         "prompts have more tokens than max_prompt_tokens, 4 (question 0 has 9, question 1 has"),
        (True, {"questions": "jsonl:none.jsonl"}, DataError, "none.jsonl: cannot read the questi"),
        (True, {"mesh": (0, 1, 1)}, ConfigError, "mesh.data is 0: it must be a positive size"),
        (False, {"prompt_template": "<|im_end|> {question}"}, DataError,
         "its prompt names '<|im_end|>', a special token of"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_option(
    found: Found, of_run: bool, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    asking = replace(Asking(found.source), **changes)
    with pytest.raises(kind) as error:
        ask(asking, found.run if of_run else found.published)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
