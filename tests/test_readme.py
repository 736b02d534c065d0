"""README.md and docs/: what they name exists, and the README's experiment loads."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

import rft_jax
from rft_jax import config as sections
from rft_jax.config import Config
from rft_jax.config import experiment as experiments

ROOT = Path(rft_jax.__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/README.md"]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT))

LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:rft_jax|tests|experiments|benchmarks|docs|launch)/[\w./-]*)`")
SETTING = re.compile(r"`([a-z]+)\.([a-z]\w*)(?:=[^`]*)?`")
SUFFIXES = {"json", "jsonl", "md", "model", "py"}
"""`tokenizer.json` is a file, no setting."""

QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}


def prose(page: Path) -> str:
    """The page without its code blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^(    [^\n]*|```.*?^```)$", "", text, flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def section(page: Path, heading: str) -> str:
    return page.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]


@each_page
def test_links(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}: no heading"


def test_readme_links_every_page() -> None:
    linked = {(ROOT / target.partition("#")[0]) for target in LINK.findall(README.read_text())}
    assert {*(ROOT / "docs").glob("*.md")} <= linked


@each_page
def test_paths(page: Path) -> None:
    run = re.findall(r"experiments/[\w.]+\.py", page.read_text(encoding="utf-8"))
    for path in [*PATH.findall(prose(page)), *run]:
        assert (ROOT / path).exists(), f"{page.name} names {path}, which does not exist"


@each_page
def test_settings(page: Path) -> None:
    by_section = {
        field.name: {inner.name for inner in dataclasses.fields(kind)}
        for field in dataclasses.fields(Config)
        for kind in [getattr(sections, f"{field.name.capitalize()}Config", None)]
        if kind is not None
    }
    assert "rollout" in by_section
    for name, field in SETTING.findall(prose(page)):
        if name in by_section and field not in SUFFIXES:
            assert field in by_section[name], f"{page.name} names {name}.{field}: no such setting"


def test_to_change_x_open_y() -> None:
    rows = [line for line in section(README, "To change X, open Y").splitlines() if "|" in line]
    changed = [row.split("|")[1].strip() for row in rows[2:]]
    for word in ("method", "family", "field", "metric", "rule", "temperature", "checkpoint"):
        assert any(word in change for change in changed), f"no row says how to change a {word}"
    for row in rows[2:]:
        paths = PATH.findall(row)
        assert paths, f"{row} names no path"
        for path in paths:
            assert (ROOT / path).exists(), f"{path} does not exist"


def first_code(text: str, tmp_path: Path, lines: int) -> Path:
    """A file of the first code block, of no more lines than that, with a folder in place of the
    published model, which is not at hand."""
    code = text.split("```python\n")[1].split("```")[0]
    model = re.findall(r'"hf:([^"]+)"', code)
    assert len(model) == 1
    assert len([line for line in code.splitlines() if line.strip()]) <= lines
    (tmp_path / "config.json").write_text(json.dumps(QWEN2))
    path = tmp_path / "mine.py"
    path.write_text(code.replace(model[0], str(tmp_path)))
    return path


def test_the_experiment_loads(tmp_path: Path) -> None:
    path = first_code(section(README, "Your data and your model"), tmp_path, 24)
    (config,) = experiments.load(path).values()
    assert config.model.num_layers == QWEN2["num_hidden_layers"]


def test_the_study_loads(tmp_path: Path) -> None:
    path = first_code((ROOT / "docs" / "studies.md").read_text(encoding="utf-8"), tmp_path, 36)
    study = experiments.load_study(path)
    assert list(study.arms) == ["rft", "online_rft"]
    assert len(study.tuning()) == 4


def test_length() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 140
