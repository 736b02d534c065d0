"""`rft-jax plan`: what it prints and writes for this machine and by count, and its errors."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import checkpoints
import jax
import pytest
import tiny_experiment

from rft_jax.commands import plan as planning_command
from rft_jax.commands.main import main
from rft_jax.planning import targets

ROOT = Path(__file__).resolve().parents[2]
QWEN = str(ROOT / "experiments" / "gsm8k_qwen2.5_1.5b.py")
SMALL = str(ROOT / "experiments" / "gsm8k_qwen2.5_0.5b.py")


@pytest.fixture(autouse=True)
def _command_line() -> Iterator[None]:
    with checkpoints.command_line():
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_experiment.write_experiment(tmp_path_factory.mktemp("planning")))


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, study: str) -> tuple[dict[str, Any], str]:
    """(the JSON of a plan for two of this machine's eight devices each way, what was printed)."""
    out = tmp_path_factory.mktemp("plans") / "plan.json"
    mesh = ("--online_rft.mesh.data", "2", "--online_rft.mesh.fsdp", "4")
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("builtins.print", lambda *text, **_: said.append(" ".join(map(str, text))))
        assert main(["plan", study, "--only", "online_rft", "--json", str(out), *mesh]) == 0
    return json.loads(out.read_text(encoding="utf-8")), "\n".join(said)


@pytest.mark.slow
def test_a_plan_for_this_machine_says_memory_and_exchanges(
    planned: tuple[dict[str, Any], str],
) -> None:
    content, _ = planned
    (plan,) = content["plans"]
    assert content["rankings"] == {}
    assert content["versions"]["jax"] == jax.__version__
    assert plan["source"] == "compiled"
    assert plan["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    assert plan["target"]["count"] == 8
    # max_completion_tokens is 8, so that the ring never grows.
    assert set(plan["functions"]) == {"prefill", "decode", "update"}
    for of in plan["functions"].values():
        assert set(of["memory"]) == {
            "parameters", "optimizer", "rollout weights", "caches", "temporaries",
        }  # fmt: skip
        assert all(size >= 0 for size in of["memory"].values())
        assert of["counted"]["flops"] > 0
    update = plan["functions"]["update"]
    assert update["memory"]["rollout weights"] == 0
    assert {one["kind"] for one in update["exchanges"]} & {"all-gather", "all-reduce"}
    assert plan["functions"]["decode"]["weights_gathered_in_loop"] == []
    assert plan["memory"]["fits"]
    assert plan["memory"]["peak"] == max(plan["memory"]["peaks"].values())


@pytest.mark.slow
def test_without_known_rates_there_are_no_seconds(planned: tuple[dict[str, Any], str]) -> None:
    content, said = planned
    (plan,) = content["plans"]
    assert not plan["target"]["rates_known"]
    assert "step" not in plan
    assert "Rates of this device are not known" in said
    assert "Weights gathered inside the decode loop: none." in said
    assert "it fits" in said


@pytest.mark.slow
def test_known_rates_give_seconds_hours_and_tokens(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As though this machine's devices were in the table."""
    monkeypatch.setattr(targets, "of_kind", lambda _: targets.CHIPS["h100"])
    out = tmp_path / "plan.json"
    assert main(["plan", study, "--only", "online_rft", "--json", str(out)]) == 0
    (plan,) = json.loads(out.read_text(encoding="utf-8"))["plans"]
    assert plan["step"] == pytest.approx(sum(plan["seconds"].values()))
    assert plan["run_hours"] == pytest.approx(sum(plan["hours"].values()))
    assert plan["chip_hours"] == pytest.approx(8 * plan["run_hours"])
    tokens = 8 * 4 * plan["supposed"]["output"]
    assert plan["tokens_per_second"]["step"] == pytest.approx(tokens / plan["step"])
    decode = plan["functions"]["decode"]["seconds"]
    assert decode["by"] == "roofline"  # this machine's compiler says no time
    assert decode["floor"] <= decode["estimate"]


def test_a_plan_by_count_compiles_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    command = ["plan", QWEN, "--device", "a100-80gb", "--only", "online_rft", "--json", str(out)]
    assert main(command) == 0
    (plan,) = json.loads(out.read_text(encoding="utf-8"))["plans"]
    assert plan["source"] == "counted"
    assert set(plan["functions"]) == {"prefill", "decode", "growth", "update"}
    assert plan["seconds"]["update"] == pytest.approx(
        plan["functions"]["update"]["seconds"]["roofline"] / 0.4
    )
    said = capsys.readouterr().out
    assert "Nothing is measured." in said
    assert "it fits" in said


def test_what_does_not_fit_is_said_with_what_would_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", QWEN, "--device", "t4", "--only", "online_rft"]) == 1
    said = capsys.readouterr().out
    assert "of 13.6 GiB: IT DOES NOT FIT" in said
    assert "What would help, by the count:" in said
    assert "--online_rft.optimizer.first_moment_dtype bfloat16: saves " in said


def test_a_run_without_rollouts_is_planned_too(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ROOT / "experiments" / "arithmetic.py")
    assert main(["plan", path, "--device", "t4", "--only", "sft"]) == 0
    said = capsys.readouterr().out
    assert "| update |" in said
    assert "| decode |" not in said
    assert "tokens/s" not in said


@pytest.mark.slow
def test_a_search_ranks_and_plans_for_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    command = ["plan", QWEN, "--device", "4xv5e", "--only", "online_rft", "--search"]
    assert main([*command, "--compile", "2", "--json", str(out)]) == 0
    content = json.loads(out.read_text(encoding="utf-8"))
    ranked = content["rankings"]["online_rft"]
    assert all(math.prod(one["mesh"].values()) == 4 for one in ranked)
    fitting = [one["step"] for one in ranked if one["fits"]]
    assert fitting == sorted(fitting)
    assert [one["fits"] for one in ranked] == sorted((one["fits"] for one in ranked), reverse=True)
    assert [plan["mesh"] for plan in content["plans"]] == [one["mesh"] for one in ranked[:2]]
    assert f"{len(ranked)} meshes by the count" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fits", "compiled", "planned"),
    [
        ((True,), "1", [0]),
        ((False, False, True), "1", [2]),
        ((False, True, False, True), "2", [1, 3]),
        ((False, False, False, False), "1", [0, 1, 2, 3]),
    ],
)
def test_a_search_continues_where_the_compiler_needs_more_than_the_count(
    fits: Sequence[bool],
    compiled: str,
    planned: Sequence[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = planning_command._plan
    verdicts = iter(fits)

    def plan(*arguments: Any) -> Any:
        made = whole(*arguments)
        return made | {"memory": made["memory"] | {"fits": next(verdicts)}}

    monkeypatch.setattr(planning_command, "_plan", plan)
    out = tmp_path / "plan.json"
    command = ["plan", QWEN, "--device", "8xa100-80gb", "--only", "online_rft", "--search"]
    status = main([*command, "--compile", compiled, "--json", str(out)])
    assert status == (0 if any(fits) else 1)
    content = json.loads(out.read_text(encoding="utf-8"))
    ranked = [one["mesh"] for one in content["rankings"]["online_rft"]]
    assert [plan["mesh"] for plan in content["plans"]] == [ranked[place] for place in planned]
    assert next(verdicts, None) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "k80"], "--device is 'k80', which is not known: one of t4,"),
        (["--device", "0xt4"], "--device is '0xt4', which is not known"),
        (["--device", "t4", "--only", "rtf"], "only names 'rtf', which is no run"),
        (["--device", "4xv5e"], "rft: update.rows_per_microbatch is 1: it must be a multiple"),
        (
            ["--device", "4xh100", "--rft.mesh.data", "3"],
            "rft: mesh is data=3 x fsdp=1 x tensor=1, and there are 4 devices",
        ),
        (
            ["--device", "4xh100", "--rft.mesh.data", "1", "--rft.mesh.tensor", "4"],
            "rft: mesh.tensor is 4: it must divide",
        ),
        (["--device", "t4", "--rft.model.remat", "all"], "--rft.model.remat is 'all'"),
        (["--device", "t4", "--pass_rate", "2"], "--pass_rate is 2.0: it must lie in"),
        (["--device", "t4", "--topology", "v5e:2x2"], "give one of them"),
        (["--counted"], "--counted says how a --topology is planned for"),
        (["--device", "t4", "--compile", "0"], "--compile is 0: it must be at least 1"),
        (["--device", "t4", "--serch"], "unknown option --serch; did you mean --search?"),
        (["--device", "t4", "--mean_output_tokens", "9999"], "--mean_output_tokens is 9999, and"),
        (["--device", "t4", "--json", "nowhere/plan.json"], "--json nowhere/plan.json: cannot w"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", SMALL, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rft-jax: error: ")
    assert said in line


def test_without_the_compiler_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["plan", SMALL, "--topology", "v5e:2x2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'pip install "jax[tpu]"' in line
    assert main(["plan", QWEN, "--topology", "v5e:2x2", "--counted"]) == 0
    assert "online_rft on v5e:2x2: fsdp 4" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v5e:2xtwo", "v9:2x2", "v5e:0x2", "2x2"])
def test_a_topology_that_is_none_is_one_line_with_examples(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert main(["plan", SMALL, "--topology", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--topology is {name!r}" in line
    assert "v5e:4x4" in line


def test_help_lists_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", SMALL, "--help"]) == 0
    said = capsys.readouterr().out
    for option in ("--topology", "--search", "--json", "--mean_output_tokens"):
        assert option in said


FLOAT32 = tuple(f"--{run}.model.compute_dtype=float32" for run in ("rft", "online_rft"))
TEST = ("--test_questions", "5000")
FITS = [
    ("gsm8k_qwen2.5_0.5b", "t4", FLOAT32),
    ("gsm8k_qwen2.5_0.5b", "a4000", ()),
    ("gsm8k_qwen2.5_0.5b", "1xv5e", ()),
    ("gsm8k_qwen2.5_1.5b", "a100-80gb", ()),
    ("gsm8k_qwen2.5_1.5b", "h100", ()),
    ("gsm8k_qwen2.5_1.5b", "4xv5e", ()),
    ("math_deepseekmath_7b", "4xv5p", TEST),
    ("math_deepseekmath_7b", "8xa100-80gb", TEST),
    ("math_deepseekmath_7b", "8xh100", TEST),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "device", "options"), FITS, ids=lambda value: str(value))
def test_experiments_fit_their_devices_as_their_docstrings_say(
    name: str, device: str, options: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "experiments" / f"{name}.py"
    assert main(["plan", str(path), "--device", device, *options]) == 0
    said = capsys.readouterr().out
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    (line,) = (row for row in said.splitlines() if row.startswith("online_rft: "))
    assert line.removeprefix("online_rft: ").removesuffix(".") in " ".join(text.split())
