"""Options of commands: from the command line to a dataclass, and what the help says of them."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.commands import typed_options
from rft_jax.commands.options import (
    Asking,
    ConvertOptions,
    EvaluateOptions,
    Judging,
    SampleOptions,
    VerifyOptions,
)
from rft_jax.config.experiment import parse_options
from rft_jax.errors import ConfigError

COMMANDS = (SampleOptions, EvaluateOptions, ConvertOptions, VerifyOptions)
NEEDED = ["--out", "o", "--questions", "jsonl:q"]


def read(kind: type, *args: str) -> Any:
    return typed_options.read(kind, parse_options(args))


def refusal(kind: type, *args: str) -> str:
    with pytest.raises(ConfigError) as error:
        read(kind, *args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_not_given_is_left_to_the_command() -> None:
    assert read(SampleOptions, *NEEDED) == SampleOptions(Path("o"), Asking("jsonl:q"))
    assert read(ConvertOptions) == ConvertOptions("safetensors", None, 4.0)
    assert read(EvaluateOptions, *NEEDED).judging == Judging()


def test_every_kind_of_value() -> None:
    asked = read(
        EvaluateOptions, *NEEDED, "--samples", "4", "--temperature=0.5", "--mesh", "2", "1", "-1",
        "--compute-dtype", "bfloat16", "--system", "", "--checks", "equations", "m:f",
        "--tolerance", "1/1000", "--prompt_format", "chat", "--timeout", "2.5",
    )  # fmt: skip
    assert asked == EvaluateOptions(
        out=Path("o"),
        asking=Asking(
            "jsonl:q", prompt_format="chat", system="", compute_dtype="bfloat16", mesh=(2, 1, -1)
        ),
        judging=Judging(
            checks=("equations", "m:f"), tolerance=Fraction(1, 1000), timeout=Fraction(5, 2)
        ),
        samples=4,
        temperature=0.5,
    )
    assert read(SampleOptions, *NEEDED, "--greedy").greedy
    assert read(VerifyOptions, "--skip-bad", "--out", "o").skip_bad


@pytest.mark.parametrize(
    ("kind", "args", "message"),
    [
        (SampleOptions, NEEDED[:2],
         "--questions is missing: give the source of the questions: jsonl:PATH or "
         "tfds:NAME/SPLIT, with a slice such as [:100] if wanted."),
        (VerifyOptions, [], "--out is missing: give the file that the verdicts are written to."),
        (SampleOptions, [*NEEDED, "--sample", "2"],
         "unknown option --sample; did you mean --samples?"),
        (ConvertOptions, ["--quiet"], "unknown option --quiet."),
        (ConvertOptions, ["--dtype", "float32", "--dtype", "bfloat16"],
         "--dtype is given twice: give it once."),
        (ConvertOptions, ["--dtype", "bfloat"],
         "--dtype is 'bfloat': {float32,bfloat16} is expected; did you mean bfloat16?"),
        (ConvertOptions, ["--format", "gguf"], "--format is 'gguf': {safetensors} is expected."),
        (ConvertOptions, ["--max-shard-gb", "0"], "--max-shard-gb is 0.0: it must be positive."),
        (ConvertOptions, ["--max-shard-gb", "nan"], "--max-shard-gb is nan: it must be positive."),
        (ConvertOptions, ["--max-shard-gb"], "--max-shard-gb takes one value, found none."),
        (SampleOptions, [*NEEDED, "--out="], "--out is given twice: give it once."),
        (SampleOptions, ["--out="], "--out takes one value, found none."),
        (SampleOptions, [*NEEDED, "--samples", "two"], "--samples is 'two': INT is expected."),
        (SampleOptions, [*NEEDED, "--samples", "0"], "--samples is 0: it must be at least 1."),
        (SampleOptions, [*NEEDED, "--mesh", "1"], "--mesh takes 3 values, found 1: 1."),
        (SampleOptions, [*NEEDED, "--greedy", "yes"], "--greedy takes no value, found 'yes'."),
        (SampleOptions, [*NEEDED, "--greedy", "--temperature", "1"],
         "--temperature does nothing beside --greedy: leave one of them out."),
        (SampleOptions, [*NEEDED, "--greedy", "--samples", "2"],
         "--samples is 2 beside --greedy, which gives each question the same output every time: "
         "leave one of them out."),
        (SampleOptions, [*NEEDED, "--temperature", "0"],
         "--temperature is 0.0: it must be a positive number; greedy outputs have none."),
        (SampleOptions, [*NEEDED, "--temperature", "inf"],
         "--temperature is inf: it must be a positive number; greedy outputs have none."),
        (SampleOptions, [*NEEDED, "--max-new-tokens", "0"],
         "--max-new-tokens is 0: it must be at least 1."),
        (SampleOptions, [*NEEDED, "--seed", "-1"],
         "--seed is -1: it must lie between 0 and 2147483647."),
        (EvaluateOptions, [*NEEDED, "--samples", "-1"],
         "--samples is -1: it must be at least 0."),
        (EvaluateOptions, [*NEEDED, "--rule", "random"],
         "--rule is random: an evaluation by lot says nothing; name a rule."),
        (EvaluateOptions, [*NEEDED, "--rule", "bxed"],
         "--rule is 'bxed', which is no rule; did you mean boxed?"),
        (EvaluateOptions, [*NEEDED, "--tolerance", "1/0"],
         "--tolerance is '1/0': a number is expected."),
        (EvaluateOptions, [*NEEDED, "--tolerance", "-1/3"],
         "--tolerance is '-1/3': a number of at least 0 is needed."),
        (EvaluateOptions, [*NEEDED, "--tolerance", "1" * 50],
         f"--tolerance is '{'1' * 50}': a number is expected."),
        (EvaluateOptions, [*NEEDED, "--timeout", "0"],
         "--timeout is '0': a number of at least 0.001 is needed."),
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
    options = SampleOptions(Path(out), asking, samples, temperature)
    args: list[str] = []
    for name, values in {
        "out": out, "samples": samples, "temperature": temperature, "questions": "jsonl:q",
        "seed": asking.seed, "prompt-template": asking.prompt_template, "mesh": asking.mesh,
    }.items():  # fmt: skip
        if values is not None:
            args += [f"--{name}", *map(str, values if isinstance(values, tuple) else (values,))]
    assert read(SampleOptions, *args) == options


@pytest.mark.parametrize("kind", COMMANDS)
def test_help_lists_every_option_with_its_doc_and_default(kind: Any) -> None:
    text = typed_options.help_text(kind, "rft-jax x")
    assert text.startswith("usage: rft-jax x\n\n")
    assert max(map(len, text.splitlines())) <= 100
    assert " ".join(kind.__doc__.split())[:80] in " ".join(text.split())
    flat = " ".join(text.split())
    for name, (_, default, doc) in typed_options.declared(kind).items():
        assert f"\n  {typed_options.written(name)}" in text
        assert doc in flat
        if default is dataclasses.MISSING:
            assert f"{doc} Must be given." in flat
        elif default is None:
            assert "Default: " in doc, f"--{name} does not say what it is when it is not given"
        elif default is not False:
            assert f"{doc} Default: {default}." in flat


@dataclasses.dataclass(frozen=True)
class Inner:
    """Within."""

    depth: Literal["a", "b"] = "b"
    """How deep it is."""


@dataclasses.dataclass(frozen=True)
class Outer:
    """About
    two lines."""

    inner: Inner
    some_size: int | None = None
    """How large
    it is."""
    loud: bool = False
    """Whether it is loud."""


def test_help() -> None:
    assert typed_options.help_text(Outer, "x [options]") == (
        "usage: x [options]\n\nAbout\ntwo lines.\n\n"
        "  --some-size INT\n      How large it is.\n"
        "  --loud\n      Whether it is loud.\n"
        "  --depth {a,b}\n      How deep it is. Default: b."
    )
    assert read(Outer, "--loud", "--depth", "a", "--some_size", "3") == Outer(Inner("a"), 3, True)
