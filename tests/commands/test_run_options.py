"""What `rft-jax run` takes after EXPERIMENT."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from rft_jax.commands import run_options
from rft_jax.commands.run_options import RunOptions
from rft_jax.config.experiment import Option
from rft_jax.config.steps import Steps
from rft_jax.distributed.watchdog import Limits
from rft_jax.errors import ConfigError

FILE = Path("experiments/study.py")


def test_all_options() -> None:
    args = "--only sft rft --profile steps 3..5 --sft.steps 4 --workdir w --only online_rft"
    assert run_options.read(FILE, args.split(), of_run=True) == RunOptions(
        workdir=Path("w"),
        only=("sft", "rft", "online_rft"),
        profile=Steps(3, 5),
        limits=Limits(),
        rest=(Option("sft.steps", ("4",)),),
    )


def test_no_options() -> None:
    expected = RunOptions(Path("runs/study"), (), None, Limits(), ())
    assert run_options.read(FILE, [], of_run=True) == expected


@pytest.mark.parametrize("args", [["--profile", "steps", "3..3"], ["--profile=steps", "3..3"]])
def test_one_step(args: list[str]) -> None:
    found = run_options.read(FILE, args, of_run=True).profile
    assert found == Steps(3, 3)
    assert str(found) == "steps 3..3"


def test_limits_of_a_job() -> None:
    args = ["--lost-after", "5", "--stalled-after", "7.5"]
    found = run_options.read(FILE, args, of_run=True)
    assert (found.limits, found.rest) == (Limits(lost_after=5.0, stalled_after=7.5), ())


def test_other_commands_leave_the_options_of_run() -> None:
    args = ["--only", "sft", "--profile", "steps", "3..5"]
    found = run_options.read(FILE, args, of_run=False)
    assert [option.name for option in found.rest] == ["only", "profile"]


FORM = "--profile takes `steps FIRST..LAST`, such as `steps 3..5` or `steps 3..3`, found "


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--lost-after", "--lost-after takes a number of seconds above 0, found none."),
        ("--stalled-after 0", "--stalled-after takes a number of seconds above 0, found 0."),
        ("--lost-after 1 2", "--lost-after takes a number of seconds above 0, found 1 2."),
        ("--profile", FORM + "none."),
        ("--profile steps", FORM + "'steps'."),
        ("--profile 3..5", FORM + "'3..5'."),
        ("--profile step 3..5", FORM + "'step 3..5'."),
        ("--profile steps 3", FORM + "'steps 3'."),
        ("--profile steps 3-5", FORM + "'steps 3-5'."),
        ("--profile steps 3 5", FORM + "'steps 3 5'."),
        ("--profile steps -3..5", FORM + "'steps -3..5'."),
        ("--profile steps 3..", FORM + "'steps 3..'."),
        ("--profile steps 3...5", FORM + "'steps 3...5'."),
        ("--profile steps ٣..٥", FORM + "'steps ٣..٥'."),
        ("--profile steps 0..5",
         "--profile is 'steps 0..5': steps are counted from 1, the first update."),
        ("--profile steps 5..3",
         "--profile is 'steps 5..3', which names no step: the last one must not be before the "
         "first."),
        ("--profile steps 1..2 --profile steps 3..4",
         "--profile is given twice: give it once."),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused(args: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        run_options.read(FILE, args.split(), of_run=True)
    assert str(error.value) == message


def test_a_range_must_be_within_every_selected_run() -> None:
    experiment = {"short": tiny.sft(steps=3), "long": tiny.sft(steps=9)}
    run_options.check_profile(None, experiment, list(experiment))
    run_options.check_profile(Steps(2, 3), experiment, list(experiment))
    run_options.check_profile(Steps(8, 9), experiment, ["long"])
    with pytest.raises(ConfigError) as error:
        run_options.check_profile(Steps(3, 4), experiment, list(experiment))
    assert str(error.value) == (
        "--profile is 'steps 3..4' and run short ends with step 3: name steps that it has, or "
        "leave the run out (--only)."
    )


def test_a_workdir_may_be_in_a_bucket() -> None:
    found = run_options.read(FILE, ["--workdir", "gs://bucket/runs"], of_run=True)
    assert str(found.workdir) == "gs://bucket/runs"
