"""Checkpoints: which policy a name means, and its parameters as they were."""

from __future__ import annotations

import json
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import checkpoints
import jax
import numpy as np
import pytest
import tiny_experiment

from rft_jax.checkpoint import integrity as checkpoint_health
from rft_jax.checkpoint import manager as checkpoint
from rft_jax.checkpoint import policy as policies
from rft_jax.checkpoint.policy import find
from rft_jax.checkpoint.start import merged, to_sample_from
from rft_jax.config import Config, MeshConfig
from rft_jax.config.serialize import plain
from rft_jax.distributed.mesh import make_mesh
from rft_jax.errors import CheckpointError, ConfigError, ModelError, UserError
from rft_jax.hub.families import model_of
from rft_jax.models import adapters, transformer
from rft_jax.types import Params, TrainState


class Found(NamedTuple):
    """A workdir with the runs sft, lora (adapters on it) and half (not finished); a published
    model; and the parameters of the first two."""

    workdir: Path
    published: Path
    config: Config
    sft: Params
    lora: Params


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("policies")
    config = checkpoints.sft(tiny_experiment.write_questions(folder))
    workdir = folder / "work"
    sft = checkpoints.write_run(workdir, "sft", config)
    lora = checkpoints.write_run(workdir, "lora", checkpoints.with_lora(config, "run:sft"))
    checkpoints.write_run(workdir, "half", config, finished=False)
    published = checkpoints.write_published(folder / "qwen", "bfloat16")
    return Found(workdir, published, config, sft, lora)


@pytest.mark.slow
def test_a_run(found: Found) -> None:
    policy = find(str(found.workdir / "sft"))
    assert policy.config is not None
    assert plain(policy.config) == plain(found.config)
    assert policy.init_from == f"workdir:{found.workdir}/sft@8"
    assert policy.folder == found.workdir / "sft"
    assert policy.model == replace(found.config.model, vocab_size=274)
    assert policy.tokenizer.vocab_size == 274
    assert (policy.raw, policy.max_positions) == (None, None)


@pytest.mark.parametrize(
    ("which", "step"), [("@8", 8), ("@3", 3), ("@03", 3), ("@best", 3), ("", 8)]
)
def test_a_checkpoint_of_a_run(found: Found, tmp_path: Path, which: str, step: int) -> None:
    run = shutil.copytree(found.workdir / "sft", tmp_path / "work" / "sft")
    shutil.copytree(run / "checkpoints/8", run / "checkpoints/3")
    checkpoint_health.write_record(run / "checkpoints/3", 0.5)
    for target in (run, tmp_path / "work"):
        policy = find(f"{target}{which}")
        assert policy.folder == run
        assert policy.init_from == f"workdir:{run}@{step}"
        assert policy.step == step
        # What was the best or the last may change: the name that results keep does not say so.
        assert policy.name == f"{target}@{step}"


@pytest.mark.slow
def test_the_checkpoint_that_is_named_is_read(found: Found, tmp_path: Path) -> None:
    run = shutil.copytree(found.workdir / "sft", tmp_path / "sft")
    scaled = jax.tree.map(lambda leaf: leaf * 2, found.sft)
    other = tmp_path / "other"
    with checkpoint.open_manager(other, found.config.checkpoint) as manager:
        state = TrainState(np.int32(3), scaled, ())  # type: ignore[arg-type]
        checkpoint.save(manager, 3, checkpoint.Saved(state, {}), 0.5)
    shutil.move(other / "3", run / "checkpoints/3")
    for which, expected in (("", found.sft), ("@3", scaled), ("@best", scaled)):
        policy = find(f"{run}{which}")
        jax.tree.map(np.testing.assert_array_equal, merged(policy), expected)
        read = to_sample_from(policy, make_mesh(MeshConfig()))
        jax.tree.map(np.testing.assert_array_equal, read, transformer.unstack(expected))


def test_a_folder_may_be_called_so(found: Found, tmp_path: Path) -> None:
    folder = shutil.copytree(found.workdir / "sft", tmp_path / "run@8")
    policy = find(str(folder))
    assert (policy.folder, policy.step, policy.name) == (folder, 8, f"{folder}@8")


@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_a_published_model(found: Found, prefix: str) -> None:
    policy = find(f"{prefix}{found.published}")
    assert policy.config is None
    assert policy.init_from == f"hf:{found.published}"
    assert policy.model == model_of(str(found.published), compute_dtype="bfloat16")
    assert policy.tokenizer.chat_template is not None
    assert policy.max_positions == 64


def test_the_compute_type_may_be_chosen(found: Found) -> None:
    for target in (found.workdir / "sft", found.published):
        for dtype in ("float32", "bfloat16"):
            assert find(str(target), dtype).model.compute_dtype == dtype


@pytest.mark.parametrize(
    ("stated", "chosen"),
    [({"torch_dtype": "bfloat16"}, "bfloat16"), ({"dtype": "float16"}, "float32"), ({}, "float32")],
)
def test_the_compute_type_of_weights(
    found: Found, tmp_path: Path, stated: dict[str, str], chosen: str
) -> None:
    folder = shutil.copytree(found.published, tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    del raw["dtype"]
    (folder / "config.json").write_text(json.dumps(raw | stated))
    assert find(str(folder)).model.compute_dtype == chosen


def test_a_workdir_with_one_run_is_that_run(found: Found, tmp_path: Path) -> None:
    shutil.copytree(found.workdir / "sft", tmp_path / "work" / "sft")
    (tmp_path / "work" / "plots").mkdir()
    assert find(str(tmp_path / "work")).folder == tmp_path / "work" / "sft"


def test_several_runs_are_named(found: Found) -> None:
    said = (
        f"{found.workdir} holds 3 runs, half (not finished), lora, sft: name one of them, such as "
        f"{found.workdir}/half."
    )
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        find(str(found.workdir))


def not_saved_yet(found: Found, folder: Path) -> tuple[Path, str]:
    run = shutil.copytree(found.workdir / "half", folder / "half")
    (run / "checkpoints/8").rename(run / "checkpoints/8.orbax-checkpoint-tmp-1")
    return run, f"{run}/checkpoints: no checkpoint here; finish the run that makes it."


def missing(found: Found, folder: Path) -> tuple[Path, str]:
    return folder / "none", f"{folder}/none: the checkpoint is missing: name the folder of a run ("


def a_file(found: Found, folder: Path) -> tuple[Path, str]:
    (folder / "file").touch()
    return folder / "file", f"{folder}/file: the checkpoint is a file: name the folder of a run (W"


def neither(found: Found, folder: Path) -> tuple[Path, str]:
    (folder / "notes").touch()
    said = f"{folder} is no run, no workdir and no model in the Hugging Face format (it has no "
    return folder, f"{said}config.json; there is notes): name a run as WORKDIR/RUN, or a model's f"


def nothing(found: Found, folder: Path) -> tuple[Path, str]:
    return folder, f"{folder} is no run, no workdir and no model in the Hugging Face format (it ha"


def without_tokenizer(found: Found, folder: Path) -> tuple[Path, str]:
    run = shutil.copytree(found.workdir / "sft", folder / "sft")
    shutil.rmtree(run / "policy")
    return run, f"{run}: the run has no folder policy with its tokenizer: copy the whole folder of"


def with_few_rows(found: Found, folder: Path) -> tuple[Path, str]:
    model = shutil.copytree(found.published, folder / "model")
    raw = json.loads((model / "config.json").read_text()) | {"vocab_size": 90}
    (model / "config.json").write_text(json.dumps(raw))
    pieces = find(str(found.published)).tokenizer.vocab_size
    return model, f"{model}: the tokenizer has {pieces} pieces and vocab_size in config.json is 90"


def of_a_step_that_is_not_kept(found: Found, folder: Path) -> tuple[str, str]:
    kept = f"{found.workdir}/sft/checkpoints"
    return f"{found.workdir}/sft@4", (
        f"{kept}: no checkpoint of step 4 is kept here: name one of 8, or @best."
    )


def of_a_step_of_a_model(found: Found, folder: Path) -> tuple[str, str]:
    return f"{found.published}@4", f"{found.published}@4: {found.published} is no run but a model"


def of_a_step_of_nothing(found: Found, folder: Path) -> tuple[str, str]:
    return f"{folder}/none@best", f"{folder}/none@best: the checkpoint is missing: name the folder"


@pytest.mark.parametrize(
    "case",
    [
        not_saved_yet, missing, a_file, neither, nothing, without_tokenizer, with_few_rows,
        of_a_step_that_is_not_kept, of_a_step_of_a_model, of_a_step_of_nothing,
    ],
)  # fmt: skip
def test_what_is_no_policy(found: Found, tmp_path: Path, case: Any) -> None:
    target, said = case(found, tmp_path)
    with pytest.raises(UserError, match=f"^{re.escape(said)}") as error:
        find(str(target))
    assert "\n" not in str(error.value)


def test_damage_is_named_by_the_parts(found: Found, tmp_path: Path) -> None:
    model = shutil.copytree(found.published, tmp_path / "model")
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"there is neither tokenizer\.json"):
        find(str(model))
    (model / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read as JSON"):
        find(str(model))
    with pytest.raises(ModelError, match="there is no such folder, and it is no ORG/NAME"):
        find("hf:nowhere")


# Parameters.

MESHES = (MeshConfig(), MeshConfig(2, 2, 2))


def same(ours: Params, theirs: Params) -> bool:
    """Every bit of every parameter."""
    equal = jax.tree.map(lambda one, other: np.array_equal(one, other), ours, theirs)
    return all(jax.tree.leaves(equal))


def in_use(params: Params, dtype: str) -> Params:
    return transformer.unstack(transformer.cast(params, dtype))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_runs_parameters_as_a_rollout_reads_them(
    found: Found, mesh: MeshConfig, dtype: Any
) -> None:
    devices = make_mesh(mesh)
    params = to_sample_from(find(str(found.workdir / "sft"), dtype), devices)
    assert same(params, in_use(found.sft, dtype))
    # The width is whole: a decode loop gathers no weights.
    assert "fsdp" not in jax.tree.leaves(tuple(params["embedding"].sharding.spec))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_joined_as_they_are_trained(found: Found, dtype: Any) -> None:
    params = to_sample_from(find(str(found.workdir / "lora"), dtype), make_mesh(MESHES[1]))
    config = find(str(found.workdir / "lora")).model
    _, trained = adapters.split(found.lora, config)
    assert same(params, in_use(adapters.join(found.sft, trained), dtype))


def test_adapters_are_merged(found: Found) -> None:
    policy = find(str(found.workdir / "lora"))
    _, trained = adapters.split(found.lora, policy.model)
    expected = adapters.merge(adapters.join(found.sft, trained), policy.model)
    ours = merged(policy)
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert ours["embedding"].sharding.spec[1] == "fsdp"


@pytest.mark.slow
def test_published_weights_are_loaded_in_the_type_they_are_used_in(found: Found) -> None:
    params = to_sample_from(find(str(found.published)), make_mesh(MESHES[1]))
    types = {leaf.dtype.name for leaf in jax.tree.leaves(params["blocks"][0]["attention"])}
    assert types == {"bfloat16"}
    whole = merged(find(str(found.published)))
    assert same(params, in_use(whole, "bfloat16"))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(whole)} == {"float32"}


def test_float64_is_not_quietly_float32(found: Found, tmp_path: Path) -> None:
    config = replace(found.config, model=replace(found.config.model, compute_dtype="float64"))
    shutil.copytree(found.workdir / "sft", tmp_path / "sft")
    saved = json.loads((tmp_path / "sft" / "config.json").read_text())
    saved["config"]["model"]["compute_dtype"] = "float64"
    (tmp_path / "sft" / "config.json").write_text(json.dumps(saved))
    policy = policies.find(str(tmp_path / "sft"))
    assert policy.model.compute_dtype == config.model.compute_dtype
    with pytest.raises(UserError, match="computes in float64, and jax in float32 by default"):
        to_sample_from(policy, make_mesh(MeshConfig()))


def test_a_mesh_that_does_not_fit(found: Found) -> None:
    with pytest.raises(ConfigError, match=r"mesh\.tensor is 4: it must divide"):
        to_sample_from(find(str(found.workdir / "sft")), make_mesh(MeshConfig(-1, 1, 4)))


# Runs that are not finished.


def of_steps(run: Path, *steps: int) -> Path:
    """Gives the run whose last step is 8 more checkpoints of the same parameters."""
    for step in steps:
        shutil.copytree(run / "checkpoints/8", run / f"checkpoints/{step}")
        checkpoint_health.write_record(run / f"checkpoints/{step}", step / 10)
    return run


def test_the_newest_whole_checkpoint_of_a_run_that_is_not_finished(
    found: Found, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = of_steps(shutil.copytree(found.workdir / "half", tmp_path / "half"), 4, 6)
    assert find(str(run)).step == 8
    next((run / "checkpoints/8/params").glob("d/*")).write_bytes(b"other")
    (run / "checkpoints/12.orbax-checkpoint-tmp-7").mkdir()  # half written
    policy = find(f"{run}/")
    assert (policy.step, policy.name) == (6, f"{run}@6")
    assert f"{run}: step 6 of 8, which are not all made yet" in caplog.text
    assert find(f"{run}@4").step == 4
    assert find(f"{run}@best").step == 6
    # The last of a finished one is not quietly another.
    (run / "finished.json").write_text("{}")
    assert find(str(run)).step == 8


@pytest.mark.slow
def test_a_checkpoint_that_is_deleted_meanwhile_is_one_line(found: Found, tmp_path: Path) -> None:
    run = of_steps(shutil.copytree(found.workdir / "half", tmp_path / "half"), 12)
    policy = find(f"{run}@8")
    next((run / "checkpoints/8/params").glob("d/*")).unlink()
    deleting = threading.Timer(0.3, shutil.rmtree, (run / "checkpoints/8",))
    deleting.start()
    with pytest.raises(CheckpointError, match="no checkpoint of step 8 is kept here, but 12: name"):
        merged(policy)
    deleting.join()


@pytest.mark.parametrize(("which", "step"), [("@4", 4), ("@best", 6)])
def test_a_run_keeps_the_step_that_it_starts_from(
    found: Found, tmp_path: Path, which: str, step: int
) -> None:
    other = of_steps(shutil.copytree(found.workdir / "half", tmp_path / "half"), 4, 6)
    config = replace(found.config, init_from=f"run:half{which}")
    run = tmp_path / "next"
    policies.keep_start(config, tmp_path, run)
    assert policies.start_of(config.init_from, tmp_path, run) == (other, step)
    of_steps(other, 7)  # which is better
    policies.keep_start(config, tmp_path, run)
    assert policies.start_of(config.init_from, tmp_path, run) == (other, step)
    elsewhere = f"workdir:{other}{which}"
    assert policies.start_of(elsewhere, tmp_path / "none")[1] == (7 if which == "@best" else 4)
    assert policies.start_folder(elsewhere, tmp_path) == other


def test_a_start_that_is_not_finished_is_named_by_its_step(found: Found, tmp_path: Path) -> None:
    said = (
        "init_from is run:half: run half is not finished; carry it out first (leave out --only), "
        "or start from run:half@STEP of 8."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        policies.start_of("run:half", found.workdir)
    with pytest.raises(UserError, match="no checkpoint of step 3 is kept here: name one of 8"):
        policies.start_of("run:half@3", found.workdir)


def test_adapters_stand_on_the_step_that_they_were_trained_on(found: Found, tmp_path: Path) -> None:
    workdir = shutil.copytree(found.workdir, tmp_path / "work")
    policies.keep_start(checkpoints.with_lora(found.config, "run:sft"), workdir, workdir / "lora")
    expected = merged(find(str(workdir / "lora")))
    with checkpoint.open_manager(workdir / "sft/checkpoints", found.config.checkpoint) as manager:
        longer = TrainState(np.int32(9), jax.tree.map(np.zeros_like, found.sft), ())  # type: ignore[arg-type]
        checkpoint.save(manager, 9, checkpoint.Saved(longer, {}))
    assert same(merged(find(str(workdir / "lora"))), expected)
