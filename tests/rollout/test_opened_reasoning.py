"""A chat template whose prompt opens the output's reasoning: what never closes it has no answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import reference_tokenizers as reference
from enumeration import sampling

from rft_jax.commands.verify import _item as row_item
from rft_jax.config import DataConfig
from rft_jax.data.tokenizers.base import Tokenizer
from rft_jax.data.tokenizers.load import load
from rft_jax.rollout.engine import Draft, _item, output_row
from rft_jax.types import Question
from rft_jax.verification.extract import opened_reasoning
from rft_jax.verification.pool import VerifierPool
from rft_jax.verification.rules import Limits, VerifierSpec

CHAT = DataConfig(train="a", validation="a", prompt_format="chat")
QUESTION = Question(0, "What is 3 times 4?", "12")
OUTPUTS = {
    r"3*4 = 12, so \boxed{12}": "no answer",
    "3*4 = 11</think>\n\n\\boxed{12}": "equal",
    "3*4 = 12</think>\n\n\\boxed{11}": "not equal",
    r"\boxed{12}</think>": "no answer",
}


def tokenizer(folder: Path, opens: str) -> Tokenizer:
    reference.qwen(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    ends = "{% if add_generation_prompt %}" + opens + "{% endif %}"
    path.write_text(json.dumps(settings | {"chat_template": settings["chat_template"] + ends}))
    return load(str(folder))


@pytest.mark.parametrize("opens", ["<think>\n", ""])
def test_an_output_that_never_closes_it_has_no_answer(tmp_path: Path, opens: str) -> None:
    chat = tokenizer(tmp_path / "model", opens)
    drafts = [Draft(0, n, 0, text, (5,), (0.0,), True) for n, text in enumerate(OUTPUTS)]
    with VerifierPool(VerifierSpec("boxed"), Limits(1, 60.0)) as pool:
        asked = replace(sampling(), data=CHAT, tokenizer=chat, verifier=pool)
        judged = pool.verify([_item(QUESTION, draft, asked, pool) for draft in drafts])
        rows = [output_row(QUESTION, draft, CHAT, chat) for draft in drafts]
        again = pool.verify([row_item(row, pool.spec) for row in rows])
    expected = list(OUTPUTS.values())
    assert [one.reason for one in judged] == (expected if opens else ["equal", *expected[1:]])
    assert again == judged
    assert [row["output"] for row in rows] == list(OUTPUTS)


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("user: 1+1?\nassistant: <think>\n", "<think>"), ("[INST]1+1[/INST][THINK]", "[THINK]"),
        ("<think></think>", ""), ("What does <think> mean?", ""), ("<think>\n\n</think>\n\n", ""),
        ("", ""), ("<reasoning>", "<reasoning>"), ("<|channel|>analysis<|message|>", None),
    ],
)  # fmt: skip
def test_the_mark_at_the_end_of_a_prompt(prompt: str, mark: str | None) -> None:
    assert opened_reasoning(prompt) == (prompt if mark is None else mark)
