"""Digests of what a run rests on: what changes them, and what does not."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file

from rft_jax.checkpoint import inputs
from rft_jax.checkpoint.inputs import Input, Inputs
from rft_jax.config import Config, EvaluationConfig, VerificationConfig
from rft_jax.config.method import Method
from rft_jax.types import Facts, Question, Sample, Verdict

QUESTION = Question(3, "1+1?", "2", "#### 2")
SAMPLE = Sample(3, 0, 0, "#### 2", (5, 2), (-0.5, -0.1), True, Verdict.CORRECT, "equal")


def test_all_of_a_question_and_its_place_count() -> None:
    def digest(*questions: Question) -> str | None:
        return inputs.of_questions("a", questions).sha256

    other = Question(4, "1+1?", "2")
    found = [
        digest(QUESTION), digest(QUESTION, other), digest(other, QUESTION), digest(other),
        digest(Question(4, "1+1?", "3")), digest(Question(4, "1+1", "?2")),
        digest(Question(4, "1+1?", "2", "2")), digest(),
    ]  # fmt: skip
    assert len({*found}) == len(found)
    assert found[0] == digest(Question(3, "1+1?", "2", "#### 2"))


@pytest.mark.parametrize(
    "change", [{"tokens": (6, 2)}, {"log_probs": (-0.5, -0.2)}, {"verdict": Verdict.INCORRECT},
               {"finished": False}, {"text": "2"}, {"steps": ((0, 1.0),)}],
)  # fmt: skip
def test_all_of_an_output_counts(change: dict[str, Any]) -> None:
    from dataclasses import replace

    one = inputs.of_outputs("a", [(QUESTION, SAMPLE)])
    assert one != inputs.of_outputs("a", [(QUESTION, replace(SAMPLE, **change))])


def test_files_of_a_tokenizer_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    before = inputs.of_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    after = inputs.of_tokenizer(tmp_path)
    assert [name for name in after if before[name] != after[name]] == [
        "tokenizer/chat_template.jinja"
    ]
    assert before["tokenizer/chat_template.jinja"].sha256 is None
    assert list(inputs.of_tokenizer(tmp_path / "tokenizer.json")) == ["tokenizer"]


def test_weights_of_the_same_size_and_time_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, path)
    first = inputs.of_weights(tmp_path, {})
    digest = inputs._sha256
    monkeypatch.setattr(inputs, "_sha256", lambda path: pytest.fail("read again"))
    assert inputs.of_weights(tmp_path, first) == first
    monkeypatch.setattr(inputs, "_sha256", digest)
    os.utime(path, ns=(1, 1))
    touched = inputs.of_weights(tmp_path, first)["init_from/model.safetensors"]
    assert touched.sha256 == first["init_from/model.safetensors"].sha256
    save_file({"a": np.ones(3, np.float32)}, path)
    changed = inputs.of_weights(tmp_path, first)["init_from/model.safetensors"]
    assert (changed.bytes, changed.sha256 == touched.sha256) == (touched.bytes, False)
    assert inputs.of_weights(tmp_path / "none", {}) == {}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a verifier that imports others beside it."""
    files = {
        "judge.py": "import json, numpy\nimport rules_of_mine\nfrom lib.deep import rule\n",
        "rules_of_mine.py": "raise SystemExit('nobody runs it')\n",
        "lib/__init__.py": "",
        "lib/deep.py": "from . import near\nfrom .near import x\nfrom ..other import y\n",
        "lib/near.py": "import rft_jax.types\n",
        "lib/apart.py": "",
        "apart.py": "",
        "broken.py": "def f(:\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return tmp_path


def judged_by(verifier: str, *checks: str, evaluated_by: str = "") -> Config:
    return tiny.sft(
        verification=VerificationConfig(verifier=verifier, checks=checks),
        evaluation=EvaluationConfig(verifier=evaluated_by),
    )


def test_a_verifier_is_its_module_and_those_beside_it_that_it_imports(modules: Path) -> None:
    found = inputs.of_code(judged_by("judge:f"))
    assert list(found) == [
        "code/judge.py", "code/lib/__init__.py", "code/lib/deep.py", "code/lib/near.py",
        "code/rules_of_mine.py",
    ]  # fmt: skip
    assert found["code/judge.py"].where == f"{modules}/judge.py"
    (modules / "lib/near.py").write_text("x = 2\n")
    changed = inputs.of_code(judged_by("judge:f"))
    assert [name for name in found if found[name] != changed[name]] == ["code/lib/near.py"]


def test_what_no_module_of_the_user_is_is_left_out(modules: Path) -> None:
    for verifier in ("auto", "rft_jax.verification.rules:f", "json:loads", "nowhere:f"):
        assert inputs.of_code(judged_by(verifier)) == {}
    assert list(inputs.of_code(judged_by("auto", "equations", "apart:f", evaluated_by="broken:g"))
                ) == ["code/apart.py", "code/broken.py"]  # fmt: skip
    installed = inputs.of_code(judged_by("einops.parsing:f"))
    assert all(name.startswith("code/einops/") for name in installed)


def scaled(facts: Facts, by: float = 1.0) -> np.ndarray:
    return by * facts.correct.astype("float32")


class Callable:
    def __call__(self, facts: Facts) -> np.ndarray:
        return facts.correct.astype("float32")


@pytest.mark.parametrize("coefficient", [scaled, functools.partial(scaled, by=2.0), Callable()])
def test_a_method_of_a_module_is_that_module(coefficient: Any) -> None:
    config = tiny.sft(method=Method("demonstrations", "accepted", coefficient, "mine"))
    assert "code/test_inputs.py" in inputs.of_code(config)


def of_experiment(body: str) -> Inputs:
    """Of a method that an experiment file makes itself."""
    from types import ModuleType

    path = Path("study.py")
    path.write_text(f"def mine(facts):\n    {body}\n\nSTEPS = {len(body)}\n")
    module = ModuleType("experiment_study")
    exec(compile(path.read_text(), str(path.absolute()), "exec"), module.__dict__)
    method = Method("demonstrations", "accepted", module.mine, "mine")
    return inputs.of_code(tiny.sft(method=method))


def test_a_method_of_an_experiment_file_is_its_coefficient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import linecache

    monkeypatch.chdir(tmp_path)
    first = of_experiment("return facts.correct")
    linecache.clearcache()
    assert list(first) == ["method"]
    assert first["method"] == Input("mine", first["method"].sha256)
    assert of_experiment("return facts.correct  ") != first
