"""From the command line to dataclasses and fields of runs, and what the help says of them."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.commands import args as arguments
from rft_jax.commands.args import Option
from rft_jax.commands.options import (
    Asking,
    ConvertOptions,
    Drawing,
    EvaluateOptions,
    Judging,
    Measuring,
    Opening,
    PlanCommand,
    PlanOptions,
    RunOptions,
    SampleOptions,
    VerifyOptions,
)
from rft_jax.errors import ConfigError

COMMANDS = (
    RunOptions, PlanCommand, SampleOptions, EvaluateOptions, ConvertOptions, VerifyOptions,
)  # fmt: skip
WORDS = {ConvertOptions: ("w", "o")}
"""What stands without a name."""
NEEDED = ["--out", "o", "--questions", "jsonl:q"]


def read(kind: type, *args: str) -> Any:
    return arguments.read(kind, [*WORDS.get(kind, ("w",)), *args], "x")[0]


def refusal(kind: type, *args: str) -> str:
    with pytest.raises(ConfigError) as error:
        read(kind, *args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_not_given_is_left_to_the_command() -> None:
    assert read(SampleOptions, *NEEDED) == SampleOptions(
        Opening("w"), Path("o"), Asking("jsonl:q"), Drawing()
    )
    assert read(ConvertOptions) == ConvertOptions("w", Path("o"), None, 4.0)
    assert read(EvaluateOptions, *NEEDED).measuring == Measuring(Judging())
    assert read(RunOptions) == RunOptions(Path("w"), None, (), (), False, 60.0, 3600.0)


def test_every_kind_of_value() -> None:
    asked = read(
        EvaluateOptions, *NEEDED, "--samples_per_question", "4", "--temperature=0.5", "--mesh", "2",
        "1", "-1", "--compute_dtype", "bfloat16", "--system", "", "--checks", "equations", "m:f",
        "--tolerance", "1/1000", "--prompt_format", "chat", "--timeout_seconds", "2.5",
    )  # fmt: skip
    assert asked == EvaluateOptions(
        opening=Opening("w", "bfloat16"),
        out=Path("o"),
        asking=Asking("jsonl:q", prompt_format="chat", system="", mesh=(2, 1, -1)),
        measuring=Measuring(
            Judging(checks=("equations", "m:f"), tolerance=Fraction(1, 1000), timeout_seconds=2.5),
            4,
            0.5,
        ),
    )
    assert read(SampleOptions, *NEEDED, "--greedy").drawing.greedy
    assert read(VerifyOptions, "--skip_bad", "--out", "o").skip_bad


def test_options_of_run_and_fields_of_runs() -> None:
    args = "e.py --only sft rft --profile steps 3..5 --sft.steps 4 --workdir w --only online_rft"
    options, fields = arguments.read(RunOptions, [*args.split(), "--lost_after", "5"], "run")
    assert options == RunOptions(
        Path("e.py"), "w", ("sft", "rft", "online_rft"), ("steps", "3..5"), lost_after=5.0
    )
    assert fields == [Option("sft.steps", ("4",))]


def test_options_take_what_follows_them() -> None:
    _, fields = arguments.read(RunOptions, ["e", "--a.b", "1", "-2", "--c.x=x=y", "--d.e"], "run")
    assert fields == [Option("a.b", ("1", "-2")), Option("c.x", ("x=y",)), Option("d.e", ())]


def test_plan_takes_its_options_as_one() -> None:
    args = ["--topology", "v5e:4x4", "--json", "p", "--only", "a", "--counted"]
    assert read(PlanCommand, *args).planning == PlanOptions(
        topology="v5e:4x4", json=Path("p"), only=("a",), counted=True
    )


def test_a_field_of_several_types_is_read_as_text() -> None:
    class Method:
        """Stands for a row of the table of methods."""

    assert arguments.text_type(str | Method) is str
    assert arguments.text_type(Method | str) is str
    assert arguments.text_type(int | None) is int
    assert arguments.text_type(Literal["a"] | str) is str
    assert arguments.text_type(Literal["a"]) == Literal["a"]


@pytest.mark.parametrize(
    ("kind", "args", "message"),
    [
        (SampleOptions, NEEDED[:2],
         "--questions is missing: give the source of the questions: jsonl:PATH or "
         "tfds:NAME/SPLIT, with a slice such as [:100] if wanted."),
        (VerifyOptions, [],
         "--out is missing: give the file that the verdicts are written to; it appears whole, in "
         "place of one there is."),
        (SampleOptions, [*NEEDED, "--sample", "2"],
         "unknown option --sample; did you mean --samples_per_question?"),
        (ConvertOptions, ["--quiet"], "unknown option --quiet."),
        (ConvertOptions, ["--dtype", "float32", "--dtype", "bfloat16"],
         "--dtype is given twice: give it once."),
        (ConvertOptions, ["--dtype", "bfloat"],
         "--dtype is 'bfloat': {float32,bfloat16} is expected; did you mean bfloat16?"),
        (RunOptions, ["--only"], "--only takes one or more values, found none."),
        (RunOptions, ["--profile"], "--profile takes one or more values, found none."),
        (RunOptions, ["--lost_after"], "--lost_after takes one value, found none."),
        (RunOptions, ["--lost_after", "1", "2"], "--lost_after takes one value, found 2: 1 2."),
        (RunOptions, ["--stalled_after", "0"],
         "stalled_after is 0.0: it must be a positive number."),
        (PlanCommand, ["--topology", "a", "--device", "b"],
         "--topology is a and --device is b: give one of them."),
        (PlanCommand, ["--pass_rate", "2"], "--pass_rate is 2.0: it must lie in [0, 1]."),
        (ConvertOptions, ["--max_shard_gb", "0"],
         "max_shard_gb is 0.0: it must be a positive number."),
        (ConvertOptions, ["--max_shard_gb", "nan"],
         "max_shard_gb is nan: it must be a positive number."),
        (ConvertOptions, ["--max_shard_gb"], "--max_shard_gb takes one value, found none."),
        (SampleOptions, [*NEEDED, "--out="], "--out is given twice: give it once."),
        (SampleOptions, ["--out="], "--out takes one value, found none."),
        (SampleOptions, [*NEEDED, "--samples_per_question", "two"],
         "--samples_per_question is 'two': INT is expected."),
        (SampleOptions, [*NEEDED, "--samples_per_question", "0"],
         "samples_per_question is 0: it must be at least 1."),
        (SampleOptions, [*NEEDED, "--mesh", "1"], "--mesh takes 3 values, found 1: 1."),
        (SampleOptions, [*NEEDED, "--greedy", "yes"], "--greedy takes no value, found 'yes'."),
        (SampleOptions, [*NEEDED, "--greedy", "--temperature", "1"],
         "temperature does nothing beside greedy: leave one of them out."),
        (SampleOptions, [*NEEDED, "--greedy", "--samples_per_question", "2"],
         "samples_per_question is 2 beside greedy, which gives each question the same output "
         "every time: leave one of them out."),
        (SampleOptions, [*NEEDED, "--temperature", "0"],
         "temperature is 0.0: it must be a positive number."),
        (SampleOptions, [*NEEDED, "--temperature", "inf"],
         "temperature is inf: it must be a positive number."),
        (SampleOptions, [*NEEDED, "--max_completion_tokens", "0"],
         "max_completion_tokens is 0: it must be at least 1."),
        (SampleOptions, [*NEEDED, "--seed", "-1"],
         "seed is -1: it must lie between 0 and 2147483647."),
        (EvaluateOptions, [*NEEDED, "--samples_per_question", "-1"],
         "samples_per_question is -1: it must be at least 0."),
        (EvaluateOptions, [*NEEDED, "--verifier", "random"],
         "verifier is 'random': random verdicts evaluate nothing; name a rule."),
        (EvaluateOptions, [*NEEDED, "--verifier", "bxed"],
         "verifier is 'bxed', which is no rule; did you mean boxed?"),
        (EvaluateOptions, [*NEEDED, "--tolerance", "1/0"],
         "--tolerance is '1/0': NUMBER is expected."),
        (EvaluateOptions, [*NEEDED, "--tolerance", "-1/3"],
         "tolerance is '-1/3': it must be at least 0."),
        (EvaluateOptions, [*NEEDED, "--tolerance", "1" * 50],
         f"--tolerance is '{'1' * 50}': NUMBER is expected."),
        (EvaluateOptions, [*NEEDED, "--timeout_seconds", "0"],
         "timeout_seconds is 0.0: it must be a positive number."),
        (VerifyOptions, ["--out", "o", "--workers", "2.5"],
         "--workers is '2.5': INT is expected."),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line(kind: type, args: list[str], message: str) -> None:
    assert refusal(kind, *args) == message


@given(
    out=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1),
    samples=st.integers(1, 10**6),
    temperature=st.none() | st.floats(1e-6, 1e6),
    seed=st.none() | st.integers(0, 2**31 - 1),
    template=st.none() | st.text().filter(lambda text: not text.startswith("--")),
    mesh=st.none() | st.tuples(st.integers(-1, 9), st.integers(-1, 9), st.integers(-1, 9)),
)
def test_options_survive_their_text(out: str, samples: int, **asked: Any) -> None:
    temperature = asked.pop("temperature")
    asking = Asking("jsonl:q", prompt_template=asked.pop("template"), **asked)
    options = SampleOptions(Opening("w"), Path(out), asking, Drawing(samples, temperature))
    args: list[str] = []
    for name, values in {
        "out": out, "samples_per_question": samples, "temperature": temperature,
        "questions": "jsonl:q", "seed": asking.seed, "mesh": asking.mesh,
        "prompt_template": asking.prompt_template,
    }.items():  # fmt: skip
        if values is not None:
            args += [f"--{name}", *map(str, values if isinstance(values, tuple) else (values,))]
    assert read(SampleOptions, *args) == options


def test_every_option_says_its_default() -> None:
    for kind in COMMANDS:
        for name, one in arguments.declared(kind).items():
            assert one.doc, name
            if one.default in (None, (), ""):
                assert "Default: " in one.doc, f"{name} does not say what it is when not given"


@pytest.mark.parametrize("kind", COMMANDS)
def test_help_lists_every_option_with_its_doc_and_default(
    kind: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments.print_help(kind, "x")
    text = capsys.readouterr().out
    assert text.startswith("usage: rft-jax x ")
    assert max(map(len, text.splitlines())) <= 100
    flat = " ".join(text.split())
    assert " ".join(kind.__doc__.split())[:80] in flat
    for name, one in arguments.declared(kind).items():
        assert f"\n  {name.upper() if one.positional else f'--{name}'}" in text
        assert one.doc in flat
        if one.default is dataclasses.MISSING:
            assert f"{one.doc} (required)" in flat
        elif one.default not in (None, False, (), ""):
            assert f"{one.doc} (default: {one.default})" in flat
