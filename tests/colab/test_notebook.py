"""The Colab notebook: clean as committed, and carried out whole, in small, from a fresh folder."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import nbformat
import programs
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "colab" / "quickstart.ipynb"
PNG = b"\x89PNG\r\n\x1a\n"


def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def small_options(data_dir: Path) -> str:
    """A tiny model that learns 16 problems by heart, so that its samples are accepted."""
    problems = "tfds:arithmetic_problems/demonstrations[:16]"
    shared = {
        "data.data_dir": str(data_dir), "data.train": problems, "data.validation": problems,
        "data.test": problems, "model.num_layers": 1, "model.d_model": 64, "model.num_heads": 2,
        "model.num_kv_heads": 2, "model.mlp_dim": 128, "evaluation.num_questions": 16,
        "evaluation.test_samples_per_question": 2, "evaluation.questions_per_batch": 16,
        "optimizer.warmup_steps": 0, "verification.workers": 1,
    }  # fmt: skip
    drawn = {"rollout.questions_per_step": 8, "rollout.samples_per_question": 4}
    runs = {
        "sft": {"steps": 100, "evaluation.every_steps": 100, "update.sequences_per_step": 16,
                "optimizer.learning_rate": 5e-3},
        "rft": drawn | {"steps": 2, "evaluation.every_steps": 2, "pool.rollout_steps": 2,
                        "update.sequences_per_step": 8},
        "online_rft": drawn | {"steps": 2, "evaluation.every_steps": 2},
    }  # fmt: skip
    options = {f"all.{field}": value for field, value in shared.items()}
    options |= {
        f"{run}.{field}": value for run, fields in runs.items() for field, value in fields.items()
    }
    return json.dumps(options)


def own_kernel(folder: Path) -> str:
    """The name of a kernel that runs this Python; `python3` may be another one's."""
    spec = folder / "kernels" / "this_python"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    content = {"argv": argv, "display_name": "This Python", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(content), encoding="utf-8")
    return spec.name


def test_committed_without_outputs() -> None:
    book = notebook()
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert book.cells[0].source.startswith("# ")
    for cell in book.cells:
        if cell.cell_type == "code":
            assert not cell.outputs, f"cell {cell.id} holds outputs: clear them before committing"
            assert cell.execution_count is None, f"cell {cell.id} holds an execution count"


@pytest.mark.slow
def test_runs_from_a_fresh_folder_and_shows_its_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient

    content, workdir = tmp_path / "content", tmp_path / "workdir"
    content.mkdir()
    (content / "clone").symlink_to(ROOT)
    monkeypatch.setenv("QUICKSTART_OPTIONS", small_options(tmp_path / "data"))
    monkeypatch.setenv("QUICKSTART_WORKDIR", str(workdir))
    monkeypatch.setenv("XLA_FLAGS", programs.xla_flags())  # a user has no simulated devices
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    book = notebook()
    NotebookClient(
        book,
        timeout=600,
        kernel_name=own_kernel(tmp_path / "jupyter"),
        resources={"metadata": {"path": str(content)}},
    ).execute()

    outputs = {cell.id: cell.outputs for cell in book.cells if cell.cell_type == "code"}
    text = {
        name: "".join(output.get("text", "") for output in of_cell)
        for name, of_cell in outputs.items()
    }
    assert str(content / "clone") in text["install"] or str(ROOT) in text["install"]
    for run in ("sft", "rft", "online_rft"):
        assert (workdir / run / "finished.json").is_file()
        assert f"\n{run} " in f"\n{text['results']}", "the table has no row of the run"
    assert text["results"].count("greedy/accuracy") == 3
    assert "objective" in text["run"]
    assert (workdir / "report.html").is_file()
    shown = [output.data["image/png"] for output in outputs["plots"]]
    written = sorted((workdir / "plots").glob("*.png"))
    assert len(shown) == len(written) > 3
    for image, path in zip(shown, written, strict=True):
        assert base64.b64decode(image).startswith(PNG)
        assert base64.b64decode(image) == path.read_bytes()
    assert text["samples"].count("\n--- ") == 4, "the four samples of one question"
    for run in ("rft", "online_rft"):
        logs = (workdir / run / "rollouts").glob("*.jsonl")
        assert any('"verdict": "correct"' in log.read_text(encoding="utf-8") for log in logs), run
