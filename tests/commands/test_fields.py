"""Fields of runs on the command line: what they give, and the one line each mistake gets."""

from __future__ import annotations

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.commands.args import Option, apply, print_help_of_runs, split
from rft_jax.commands.options import RunOptions
from rft_jax.config import CheckpointConfig, Config, PoolConfig, RefillConfig
from rft_jax.config.serialize import field_types, flatten, section_types
from rft_jax.errors import ConfigError


def refusal(*args: str) -> str:
    with pytest.raises(ConfigError) as error:
        changed(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def changed(*args: str) -> dict[str, Config]:
    return apply(tiny.experiment(), split(args)[1])


def test_no_override_changes_nothing() -> None:
    assert changed() == tiny.experiment()


def test_overrides_of_every_type() -> None:
    runs = changed(
        "--sft.steps", "7",
        "--sft.optimizer.learning_rate", "1e-3",
        "--sft.mesh.data=2",
        "--sft.mesh.fsdp", "-1",
        "--rft.selection.dedupe", "text",
        "--online_rft.seed=5",
        "--sft.data.prompt_template=--{question}=",
        "--rft.model.compute_dtype", "bfloat16",
    )  # fmt: skip
    assert runs["sft"].steps == 7
    assert runs["sft"].optimizer.learning_rate == 1e-3
    assert (runs["sft"].mesh.data, runs["sft"].mesh.fsdp) == (2, -1)
    assert runs["sft"].data.prompt_template == "--{question}="
    assert runs["rft"].selection is not None
    assert runs["rft"].selection.dedupe == "text"
    assert runs["rft"].model.compute_dtype == "bfloat16"
    assert runs["online_rft"].seed == 5
    assert runs["online_rft"].steps == 3


def test_a_bool_in_all_runs() -> None:
    assert changed("--sft.optimizer.learning-rate", "1")["sft"].optimizer.learning_rate == 1
    runs = changed("--all.model.tie_embeddings", "True")
    assert all(config.model.tie_embeddings is True for config in runs.values())


def test_override_of_a_tuple() -> None:
    pool = PoolConfig(from_rollouts=("old",))
    experiment = tiny.experiment() | {"rft": tiny.rft(pool=pool, rollout=None)}
    runs = apply(experiment, split(["--rft.pool.from_rollouts", "a", "b c"])[1])
    assert runs["rft"].pool == PoolConfig(from_rollouts=("a", "b c"))


def test_override_of_template_variables() -> None:
    runs = changed(
        "--sft.data.prompt_format", "chat", "--sft.data.template_variables", "thinking=False",
        "effort=low", "--sft.data.stop_tokens", "<|end|>",
    )  # fmt: skip
    assert runs["sft"].data.variables == {"thinking": False, "effort": "low"}
    assert runs["sft"].data.stop_tokens == ("<|end|>",)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sft.stepz", "3"], "unknown option --sft.stepz; did you mean --sft.steps?"),
        (["--stf.steps", "3"], "unknown option --stf.steps; did you mean --sft.steps?"),
        (["--sft.learning_rate", "1"],
         "unknown option --sft.learning_rate; did you mean --sft.optimizer.learning_rate?"),
        (["--sft.rolout.temperature", "1"],
         "unknown option --sft.rolout.temperature; did you mean --rft.rollout.temperature?"),
        (["--sft.model", "big"],
         "--sft.model is a section: name one of its fields, such as --sft.model.num_layers."),
        (["--sft.rollout.temperature", "1"],
         "sft: rollout does nothing under method sft: remove it."),
        (["--all.stepz", "1"], "unknown option --all.stepz; did you mean --all.steps?"),
        (["--online_rft.refill.accepted", "64"],
         "--online_rft.refill.accepted: run online_rft (method online_rft) has no section refill: "
         "give --online_rft.refill.max_sampled too to add it, or leave the option out."),
        (["--all.steps=1", "--all.steps=2"], "--all.steps is given twice: give it once."),
        (["--sft.steps", "three"], "--sft.steps is 'three': INT is expected."),
        (["--sft.steps", "1e3"], "--sft.steps is '1e3': INT is expected."),
        (["--sft.optimizer.b1", "x"], "--sft.optimizer.b1 is 'x': FLOAT is expected."),
        (["--sft.model.tie_embeddings", "true"],
         "--sft.model.tie_embeddings is 'true': {True,False} is expected; did you mean True?"),
        (["--sft.model.remat", "ful"],
         "--sft.model.remat is 'ful': {none,dots,full} is expected; did you mean full?"),
        (["--sft.steps"], "--sft.steps takes one value, found none."),
        (["--sft.steps", "1", "2"], "--sft.steps takes one value, found 2: 1 2."),
        (["--sft.steps=1", "--sft.steps=2"], "--sft.steps is given twice: give it once."),
        (["--sft.steps", "0"], "sft: steps is 0: a run makes at least one update."),
        (["--rft.model.head_dim", "7"],
         "rft: model.head_dim is 7: rotary embeddings need an even width."),
        (["--sft.model.d_model", "32"],
         "rft: model.d_model is 16 but 32 in run sft, which it starts from: set both alike."),
        (["--rft.init_from", "run:sfd"],
         "rft: init_from is 'run:sfd', which names no earlier run; did you mean sft?"),
    ],
)  # fmt: skip
def test_bad_override_is_refused_in_one_line(args: list[str], message: str) -> None:
    assert refusal(*args) == message


@pytest.mark.slow
@given(value=st.floats(min_value=1e-12, max_value=1e3))
def test_every_learning_rate_survives_its_text(value: float) -> None:
    rate = changed(f"--sft.optimizer.learning_rate={value!r}")["sft"].optimizer.learning_rate
    assert rate == value


@pytest.mark.slow
def test_every_field_can_be_overridden_by_its_own_text() -> None:
    experiment = {"sft": tiny.sft(), "rft": tiny.rft()}
    for run, config in experiment.items():
        for name, value in flatten(config).items():
            if name in field_types():
                values = value if isinstance(value, tuple) else (str(value),)
                option = Option(f"{run}.{name}", values)
                assert apply(experiment, [option]) == experiment


def test_a_section_is_added_and_all_runs_are_set() -> None:
    runs = changed(
        "--online_rft.refill.accepted", "3", "--online_rft.refill.max_sampled", "16",
        "--all.steps", "9", "--rft.steps", "8",
    )  # fmt: skip
    assert runs["online_rft"].refill == RefillConfig(accepted=3, max_sampled=16)
    assert [config.steps for config in runs.values()] == [9, 8, 9]


def page(capsys: pytest.CaptureFixture[str], section: str, **runs: Config) -> str:
    print_help_of_runs(RunOptions, "run", runs or tiny.experiment(), section)
    text = capsys.readouterr().out
    assert text.startswith("usage: rft-jax run EXPERIMENT")
    lines = text.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 100
    return text


def test_help_lists_own_fields_and_sections(capsys: pytest.CaptureFixture[str]) -> None:
    text = page(capsys, "")
    for word in ("--workdir", "--profile steps FIRST..LAST", "--RUN.steps INT", "--RUN.init_from"):
        assert word in text
    flat = " ".join(text.split())
    assert "(default: random in sft; run:sft in rft, online_rft)" in flat
    assert "RUN is sft, rft, online_rft, or all for each of them." in flat
    for section in section_types():
        assert f"\n  {section} " in text
    assert "(not in sft, online_rft)" in flat


@pytest.mark.parametrize("section", section_types())
def test_help_of_a_section_lists_its_fields(
    section: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = page(capsys, section)
    for name in field_types():
        assert (f"--RUN.{name} " in text) == name.startswith(f"{section}.")


def test_help_shows_the_values_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny.sft(checkpoint=CheckpointConfig(every_steps=17))
    text = " ".join(page(capsys, "checkpoint", sft=config, wide=tiny.sft()).split())
    assert "(default: 17 in sft; 100 in wide)" in text
    assert "Peak learning rate. (default: 0.0001)" in " ".join(page(capsys, "optimizer").split())
    refill = " ".join(page(capsys, "refill").split())
    assert "(default: none; needed to add the section)" in refill


def test_help_of_no_section() -> None:
    with pytest.raises(ConfigError, match="--help roll: there is no such section; did you mean"):
        print_help_of_runs(RunOptions, "run", tiny.experiment(), "roll")
