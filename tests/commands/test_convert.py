"""`rft-jax convert`: what transformers makes of the folder, and what the folder says."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_models
import tiny_experiment
from reference_models import transformers

from rft_jax.checkpoint import provenance
from rft_jax.checkpoint.policy import Policy, find
from rft_jax.checkpoint.start import merged, to_sample_from
from rft_jax.commands import convert as converting_command
from rft_jax.commands import model_card
from rft_jax.commands.ask import ask
from rft_jax.commands.main import main
from rft_jax.commands.options import Asking
from rft_jax.config import Config, MeshConfig, ModelConfig
from rft_jax.data.prompts import prompt_tokens
from rft_jax.distributed.mesh import make_mesh
from rft_jax.hub.families import model_of
from rft_jax.hub.folder import raw_config
from rft_jax.models import transformer
from rft_jax.runs import run as loop
from rft_jax.runs.run import RunResult

pytestmark = pytest.mark.slow


class Found(NamedTuple):
    """The folders of a run of its own, of adapters on that, of adapters on a published model, and
    of that model."""

    own: Path
    on_own: Path
    on_published: Path
    published: Path


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("converting")
    source = tiny_experiment.write_questions(folder)
    config, work = checkpoints.sft(source), folder / "work"
    checkpoints.write_run(work, "own", config)
    checkpoints.write_run(work, "on_own", checkpoints.with_lora(config, "run:own"))
    published = checkpoints.write_published(folder / "qwen", "bfloat16")
    chat = replace(
        config,
        data=replace(
            config.data, prompt_format="chat", prompt_template="{question}", system="Add.",
            max_prompt_tokens=64,
        ),
        tokenizer=replace(config.tokenizer, path=str(published), corpus="", vocab_size=0),
        model=model_of(str(published), compute_dtype="bfloat16"),
        update=replace(config.update, row_length=80),
    )  # fmt: skip
    on_published = checkpoints.with_lora(chat, f"hf:{published}")
    checkpoints.write_run(folder / "chats", "lora", on_published)
    return Found(work / "own", work / "on_own", folder / "chats" / "lora", published)


@pytest.fixture(autouse=True)
def _command_line() -> Iterator[None]:
    with checkpoints.command_line():
        yield


@contextlib.contextmanager
def without_a_word(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A warning of transformers is an error, whether it is logged or raised."""
    transformers.utils.logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING), warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        transformers.utils.logging.disable_propagation()
    said = [record for record in caplog.records if record.name.startswith("transformers")]
    assert not said, [record.getMessage() for record in said]


def converted(target: Path, out: Path, *options: str) -> Path:
    assert main(["convert", str(target), str(out), *options]) == 0
    return out


def logits(params: Any, model: ModelConfig, tokens: list[int]) -> np.ndarray:
    """Ours, [position, token]."""
    row = jnp.asarray([tokens])
    positions, segments = jnp.arange(row.shape[1])[None], jnp.ones_like(row)
    hidden = transformer.hidden_states(params, row, positions, segments, config=model)
    return np.asarray(transformer.logits(params, hidden, config=model))[:, 0].T


def ids_of(policy: Policy, question: str) -> list[int]:
    return prompt_tokens(question, policy.data, policy.tokenizer)


def check_same(target: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    """transformers reads `out`, without a word, as the policy of `target`."""
    with without_a_word(caplog):
        theirs, report = reference_models.load(out)
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        generation = transformers.GenerationConfig.from_pretrained(out)
    assert not any(report.values()), report
    policy = find(str(target), "float32")
    eos = generation.eos_token_id
    assert set(eos if isinstance(eos, list) else [eos]) == set(policy.tokenizer.eos_ids)
    ids = ids_of(policy, "12+ 3\n?")
    expected = reference_models.logits(theirs, [ids])[0]
    params = jax.device_get(merged(policy))
    ours = logits(params, policy.model.without_adapters(), ids)
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    # As it was trained, adapters beside their matrices.
    beside = jax.device_get(to_sample_from(policy, make_mesh(MeshConfig())))
    beside["blocks"] = jax.tree.map(lambda *layers: np.stack(layers), *beside["blocks"])
    np.testing.assert_allclose(logits(beside, policy.model, ids), expected, atol=2e-4)
    if policy.data.prompt_format == "chat":
        messages = [
            {"role": "system", "content": "Add."}, {"role": "user", "content": "12+ 3\n?"},
        ]  # fmt: skip
        read = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    else:
        read = tokenizer("12+ 3\n?\n")["input_ids"]
    assert read == ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == policy.tokenizer.decode(ids)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["own", "on_own", "on_published"])
def test_transformers_computes_and_reads_the_same(
    found: Found, tmp_path: Path, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    target: Path = getattr(found, which)
    check_same(target, converted(target, tmp_path / "out", "--dtype", "float32"), caplog)


@pytest.mark.slow
def test_runs_that_were_trained(
    found: Found, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configs = [find(str(run)).config for run in (found.own, found.on_published)]
    quiet = {
        name: replace(
            config, steps=3, data=replace(config.data, test=""),
            evaluation=replace(config.evaluation, every_steps=0),
            mesh=MeshConfig(2, 2, 2),
        )
        for name, config in zip(("own", "adapters"), configs, strict=True) if config
    }  # fmt: skip
    for name, config in quiet.items():
        assert loop.run(name, quiet, tmp_path / name) == RunResult(config.steps, True)
        out = converted(tmp_path / name, tmp_path / f"{name}_out", "--dtype", "float32")
        check_same(tmp_path / name, out, caplog)


def test_it_comes_back_as_it_was(found: Found, tmp_path: Path) -> None:
    out = converted(found.on_published, tmp_path / "out", "--dtype", "float32")
    ours, again = find(str(found.on_published)), find(str(out), "bfloat16")
    assert again.model == ours.model.without_adapters()
    assert again.tokenizer.eos_ids == ours.tokenizer.eos_ids
    assert again.tokenizer.chat_template is not None
    pairs = zip(jax.tree.leaves(merged(ours)), jax.tree.leaves(merged(again)), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)
    assert raw_config(out) | {"dtype": "bfloat16"} == raw_config(found.published)


@pytest.mark.parametrize(
    ("which", "options", "dtype"),
    [
        ("own", [], "float32"),
        ("own", ["--dtype", "bfloat16"], "bfloat16"),
        ("on_published", [], "bfloat16"),
        ("published", [], "bfloat16"),
        ("published", ["--dtype", "float32"], "float32"),
    ],
)
def test_the_type_of_the_weights(
    found: Found,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    which: str,
    options: list[str],
    dtype: str,
) -> None:
    out = converted(getattr(found, which), tmp_path / "out", *options)
    assert f" parameters in {dtype}: {out}\n" in capsys.readouterr().out
    raw = raw_config(out)
    assert raw.get("dtype", raw.get("torch_dtype")) == dtype
    theirs, _ = reference_models.load(out)
    assert theirs.dtype == reference_models.DTYPES[dtype]


def test_files_and_shards(found: Found, tmp_path: Path) -> None:
    own = converted(found.own, tmp_path / "own")
    assert {path.name for path in own.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "prompting.json",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "README.md",
    }  # fmt: skip
    raw = raw_config(own)
    # The longest prompt and output of its training.
    assert (raw["max_position_embeddings"], raw["vocab_size"]) == (20, 274)
    parts = converted(found.published, tmp_path / "parts", "--max_shard_gb", "2e-5")
    assert len(list(parts.glob("model-*.safetensors"))) > 2
    assert max(path.stat().st_size for path in parts.glob("*.safetensors")) < 42_000
    assert (parts / "model.safetensors.index.json").is_file()


def run_from(published: Path, workdir: Path, **data: Any) -> Path:
    """A run on the tokenizer of a published model, asked as `data` says."""
    config = checkpoints.sft(tiny_experiment.write_questions(workdir.parent))
    config = replace(
        config,
        init_from=f"hf:{published}",
        data=replace(config.data, max_prompt_tokens=64, **data),
        tokenizer=replace(config.tokenizer, path=str(published), corpus="", vocab_size=0),
        model=model_of(str(published), compute_dtype="bfloat16"),
        update=replace(config.update, row_length=80),
    )
    checkpoints.write_run(workdir, "run", config)
    return workdir / "run"


def test_an_export_is_asked_as_its_run_was(found: Found, tmp_path: Path) -> None:
    """Its tokenizer has a chat template; the run did without."""
    run = run_from(found.published, tmp_path / "work", stop_tokens=("\n",))
    out = converted(run, tmp_path / "out")
    ours, again = find(str(run)), find(f"hf:{out}")
    assert again.tokenizer.chat_template is not None
    assert again.data.prompting == ours.data.prompting
    assert again.data.prompt_format == "text"
    assert ids_of(again, "1+2?") == ids_of(ours, "1+2?")
    asked = [ask(Asking(ours.data.test or ours.data.train), one) for one in (ours, again)]
    assert asked[0].tokenizer.eos_ids == asked[1].tokenizer.eos_ids
    assert asked[0].tokenizer.eos_ids[-1:] == tuple(ours.tokenizer.encode("\n"))
    twice = converted(out, tmp_path / "twice")
    assert (twice / "prompting.json").read_bytes() == (out / "prompting.json").read_bytes()


def test_what_exports_stop_at(found: Found, tmp_path: Path) -> None:
    """The end of turn of a base model with a template is not the tokenizer's EOS."""
    base = Path(shutil.copytree(found.published, tmp_path / "base"))
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["eos_token"] = "<|endoftext|>"
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    (base / "generation_config.json").write_text('{"eos_token_id": 600}')
    run = run_from(base, tmp_path / "work", prompt_format="chat")
    out = converted(run, tmp_path / "out")
    stops = transformers.GenerationConfig.from_pretrained(out).eos_token_id
    assert stops == [602, 600]
    assert find(str(out)).tokenizer.special[602] == "<|im_end|>"


# The card.


def card(folder: Path) -> tuple[dict[str, str], str]:
    """(the front matter's scalars, the text below it)."""
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return dict(re.findall(r"^(\w+): (.+)$", front, re.M)), text


def code(text: str, after: str) -> str:
    """The first block of Python after a line."""
    found = re.search(rf"{re.escape(after)}\n\n```python\n(.*?)```", text, re.S)
    assert found is not None
    return found[1]


def write_metrics(run: Path) -> None:
    lines = [
        {"step": 0, "kind": "train", "greedy/accuracy": 0.9},
        {"step": 0, "kind": "validation", "greedy/accuracy": 0.25, "greedy/standard_error": 0.05,
         "pass_at/1": None, "sampled/standard_error": None, "policy/entropy": None},
        {"step": 8, "kind": "test", "greedy/accuracy": 0.5, "greedy/standard_error": 0.0625,
         "pass_at/1": 0.4, "pass_at/8": 0.75, "sampled/standard_error": 0.03,
         "maj_at/8": 0.625, "policy/entropy": 0.1234},
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text)


def test_the_card_of_a_run(found: Found, tmp_path: Path) -> None:
    write_metrics(found.own)
    config: Config | None = find(str(found.own)).config
    assert config is not None
    front, text = card(converted(found.own, tmp_path / "out"))
    assert front == {"library_name": "transformers", "pipeline_tag": "text-generation"}
    settings = re.search(r"<details>.*?```json\n(.*?)\n```.*?</details>", text, re.S)
    assert settings is not None
    assert json.loads(settings[1])["data"]["train"] == config.data.train
    for part in (
        "# out\n",
        "supervised fine-tuning on demonstrations",
        "| method | sft, 8 steps |",
        "| start | `random` |",
        f"| training data | `{config.data.train}` |",
        "| made by | rft_jax 0.1.0",
        "| validation | 0 | 25.0 ± 5.0 | - | - | - | - |",
        "| test | 8 | 50.0 ± 6.2 | 40.0 ± 3.0 | 75.0 | 62.5 | 0.123 |",
    ):
        assert part in text, part
    assert "90.0" not in text


def test_the_card_of_adapters_names_what_they_are_on(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, text = card(converted(found.on_published, tmp_path / "out"))
    assert "base_model" not in front  # a folder, and none of the hub
    assert "\n- lora\n" in (tmp_path / "out" / "README.md").read_text()
    assert "| trained | adapters (LoRA) of rank 2 and alpha 4 on query, output, up, merged" in text
    policy = find(str(found.on_published))
    at_hub = replace(policy, init_from="hf:org/name@main")
    monkeypatch.setattr(converting_command, "average", lambda *_: merged(policy))
    monkeypatch.setattr("rft_jax.checkpoint.policy.find", lambda *_: at_hub)
    front, text = card(converted(found.on_published, tmp_path / "hub"))
    assert front["base_model"] == "org/name"


def test_the_base_is_found_through_earlier_runs(found: Found, tmp_path: Path) -> None:
    config = find(str(found.own)).config
    assert config is not None
    for name, start in (("first", "hf:org/name"), ("second", "run:first")):
        provenance.save_config(
            tmp_path / name, name, replace(config, init_from=start), device="cpu", num_devices=1
        )
    last = replace(config, init_from=f"workdir:{tmp_path}/second")
    policy = replace(find(str(found.own)), config=last, folder=tmp_path / "last")
    provenance.save_config(tmp_path / "last", "last", last, device="cpu", num_devices=1)
    policy = replace(policy, init_from=f"workdir:{tmp_path}/last")
    text = model_card.model_card(policy, "out")
    assert "base_model: org/name\n" in text
    assert f"| start | `workdir:{tmp_path}/second`, which goes back to org/name |" in text
    (tmp_path / "first" / "config.json").unlink()
    assert "base_model" not in model_card.model_card(policy, "out")


@pytest.mark.parametrize("which", ["own", "on_published", "published"])
def test_what_the_card_says_of_transformers_works(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    _, text = card(converted(getattr(found, which), tmp_path / "out"))
    script = re.sub(r"max_new_tokens=\d+", "max_new_tokens=3", code(text, "With transformers:"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(script.replace('"..."', '"1+2?"'), names)
    ids = names["inputs"]["input_ids"][0].tolist()
    if which == "published":
        assert names["messages"] == [{"role": "user", "content": "1+2?"}]
    else:
        assert ids == ids_of(find(str(getattr(found, which))), "1+2?")
    compile(code(text, "With vLLM:"), "card", "exec")
    assert names["output"].shape[1] > len(ids)


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["convert", *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_refusal_comes_before_any_work(
    found: Found,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def put(*_: Any) -> None:
        raise AssertionError("parameters were loaded")

    monkeypatch.setattr(converting_command, "average", put)
    (tmp_path / "notes").touch()
    for out in (tmp_path, tmp_path / "notes"):
        assert refusal(capsys, str(found.own), str(out)) == (
            f"rft-jax: error: {out}: it is no empty folder, and nothing is written over: name a "
            "new one.\n"
        )
    out = str(tmp_path / "out")
    assert "holds 2 runs, on_own, own: name one" in refusal(capsys, str(found.own.parent), out)
    assert "is followed by nothing: OUT is expected" in refusal(capsys, str(found.own))
    policy = find(str(found.own))
    odd = replace(policy, model=replace(policy.model, norm_offset=True))
    monkeypatch.setattr("rft_jax.checkpoint.policy.find", lambda *_: odd)
    assert "no published family can express this model" in refusal(capsys, "x", out)
    biased = replace(policy, model=replace(policy.model, qkv_bias=True))
    monkeypatch.setattr("rft_jax.checkpoint.policy.find", lambda *_: biased)
    assert "it is written as qwen2, of which transformers reads no" in refusal(capsys, "x", out)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_place_that_cannot_be_written(
    found: Found, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert f"{out}: cannot write here (" in refusal(capsys, str(found.own), str(out))


def test_an_average_is_that_of_the_parameters(found: Found, tmp_path: Path) -> None:
    """Of a run and adapters on it, which are merged; the folder is evaluated like any other."""
    own, on_own = (jax.device_get(merged(find(str(run)))) for run in (found.own, found.on_own))
    out = converted(found.on_own, tmp_path / "out", "--average", f"{found.own}=0.25")
    mean = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, on_own, own)
    again = jax.device_get(merged(find(str(out), "float32")))
    for ours, expected in zip(*map(jax.tree.leaves, (again, mean)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)
    assert any(
        not np.array_equal(*pair)
        for pair in zip(*map(jax.tree.leaves, (again, on_own)), strict=True)
    )
    # An export and its run have one tokenizer in two forms.
    third = ["--average", f"{found.own}=0.5", f"{found.on_own}=0.25"]
    both = converted(out, tmp_path / "both", *third)
    mean = jax.tree.map(lambda a, b, c: 0.25 * a + 0.5 * b + 0.25 * c, again, own, on_own)
    read = jax.device_get(merged(find(str(both), "float32")))
    for ours, expected in zip(*map(jax.tree.leaves, (read, mean)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)
    card = (both / "README.md").read_text(encoding="utf-8")
    assert f"Averaged parameters: 0.25 x `{out}` + 0.5 x `{found.own}" in card
    questions = tiny_experiment.write_questions(tmp_path)
    rows = tmp_path / "evaluated"
    assert main(["evaluate", str(both), "--questions", questions, "--out", str(rows)]) == 0
    assert json.loads((rows / "metrics.json").read_text())["num_questions"] == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{own}=0.5", "{on_own}=0.5"], "the weights must add up to less than 1"),
        (["{own}"], "CHECKPOINT=WEIGHT is expected, a weight between 0 and 1"),
        (["{own}=half"], "CHECKPOINT=WEIGHT is expected, a weight between 0 and 1"),
        (["{own}=0.2", "{own}=0.3"], "average names .*own.* twice: give it one weight"),
        (["{own}=1.5"], "CHECKPOINT=WEIGHT is expected, a weight between 0 and 1"),
        (["{published}=0.5"], r"qwen: its \w+ is .*: average policies of one model"),
    ],
)
def test_what_has_no_average_is_refused(
    found: Found,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    named = [option.format(**{k: str(v) for k, v in found._asdict().items()}) for option in options]
    assert main(["convert", str(found.own), str(tmp_path / "out"), "--average", *named]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
