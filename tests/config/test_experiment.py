"""Experiment files and overrides: what they give, and the one line each mistake gets."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from rft_jax.config import (
    Config,
    CriticConfig,
    CurriculumConfig,
    PoolConfig,
    RefillConfig,
    ReplayConfig,
    ScheduleConfig,
)
from rft_jax.config import experiment as experiments
from rft_jax.config.experiment import load, override
from rft_jax.config.serialize import (
    build,
    check_types,
    field_types,
    flatten,
    replace_fields,
    suggest,
)
from rft_jax.errors import ConfigError

HEADER = "import tiny\n\ndef experiment():\n"


@pytest.fixture(autouse=True)
def _same_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


def written(folder: Path, text: str) -> Path:
    path = folder / "study.py"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    return text


# Loading


def test_load_gives_the_runs_in_order(tmp_path: Path) -> None:
    experiment = load(written(tmp_path, HEADER + "    return tiny.experiment()\n"))
    assert list(experiment) == ["sft", "rft", "online_rft"]
    assert experiment == tiny.experiment()


def test_load_sees_a_file_just_rewritten(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + "    return {'sft': tiny.sft(steps=3)}\n")
    assert load(path)["sft"].steps == 3
    path.write_text(path.read_text().replace("steps=3", "steps=4"), encoding="utf-8")
    assert load(path)["sft"].steps == 4
    assert list(tmp_path.iterdir()) == [path]


def test_an_experiment_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_study.py").write_text("STEPS = 7\n", encoding="utf-8")
    text = "import neighbour_of_study as n\n" + HEADER
    experiment = load(written(tmp_path, text + "    return {'sft': tiny.sft(steps=n.STEPS)}\n"))
    assert experiment["sft"].steps == 7


def test_an_experiment_defines_dataclasses(tmp_path: Path) -> None:
    text = (
        "from __future__ import annotations\nimport dataclasses\nimport tiny\n"
        "@dataclasses.dataclass\nclass Setting:\n    steps: int = 5\n"
        "def experiment():\n    return {'sft': tiny.sft(steps=Setting().steps)}\n"
    )
    assert load(written(tmp_path, text))["sft"].steps == 5


def test_missing_file_with_a_near_one(tmp_path: Path) -> None:
    near = written(tmp_path, "")
    missing = tmp_path / "studi.py"
    message = refusal(lambda: load(missing))
    assert message == f"experiment file {missing} does not exist; did you mean {near}?"


def test_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_text("{}", encoding="utf-8")
    message = refusal(lambda: load(path))
    assert message == f"{path} is not an experiment: a Python file, NAME.py, is expected."


def test_a_file_too_complex_for_python(tmp_path: Path) -> None:
    path = written(tmp_path, f"x = {'1 + ' * 50_000}1\n")
    assert refusal(lambda: load(path)).startswith(f"{path}: cannot be read as Python (")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef experiment(:\n", "{path}:2: invalid syntax (syntax error)."),
        (
            "from collections import UserDict\n"
            "class Odd(UserDict):\n    def __len__(self): raise KeyError('no')\n"
            "def experiment(): return Odd()\n",
            "{path}: experiment() returned what fails (KeyError: 'no').",
        ),
        (
            "x = 1\n",
            "{path} has no function experiment(): define it to return the named runs.",
        ),
        ("import tiny\ntiny.sft(steps=0)\n", "{path}:2: steps is 0: a run makes at least one "
         "update."),
        (HEADER + "    return {}['a']\n", "{path}:4: KeyError: 'a'"),
        (HEADER + "    raise ValueError('one\\ntwo')\n", "{path}:4: ValueError: one two"),
        (
            HEADER + "    return [tiny.sft()]\n",
            "{path}: experiment() returned list: a dict of named Configs is expected.",
        ),
        (
            HEADER + "    return {}\n",
            "{path}: experiment() returned no run: at least one is expected.",
        ),
        (
            HEADER + "    return {'sft-1': tiny.sft()}\n",
            "{path}: run name 'sft-1' is not an identifier: letters, digits and _ are expected.",
        ),
        (
            HEADER + "    return {'plots': tiny.sft()}\n",
            "{path}: run name plots is the report's folder of figures: choose another.",
        ),
        (
            HEADER + "    return {'all': tiny.sft()}\n",
            "{path}: run name all stands for every run in options: choose another.",
        ),
        (
            HEADER + "    return {'sft': tiny.model()}\n",
            "{path}: run sft is of type ModelConfig: Config is expected.",
        ),
        (
            HEADER + "    return {'sftt': tiny.sft(), 'rft': tiny.rft()}\n",
            "{path}: rft: init_from is 'run:sft', which names no earlier run; did you mean sftt?",
        ),
        (
            HEADER + "    return {'rft': tiny.rft(), 'sft': tiny.sft()}\n",
            "{path}: rft: init_from is 'run:sft', which names no earlier run.",
        ),
        (
            HEADER + "    rft = tiny.rft(model=tiny.model(d_model=8))\n"
            "    return {'sft': tiny.sft(), 'rft': rft}\n",
            "{path}: rft: model.d_model is 8 but 16 in run sft, which it starts from: set both "
            "alike.",
        ),
        (
            HEADER + "    import dataclasses\n    sft = tiny.sft()\n"
            "    other = dataclasses.replace(sft.tokenizer, vocab_size=300)\n"
            "    return {'sft': sft, 'wide': tiny.sft(tokenizer=other)}\n",
            "{path}: wide: tokenizer.vocab_size is 300 but 284 in run sft: an experiment trains "
            "one tokenizer; set both alike.",
        ),
    ],
)  # fmt: skip
def test_bad_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    assert refusal(lambda: load(path)) == message.format(path=path)


def test_unknown_field_in_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, "from rft_jax.config import MeshConfig\nMeshConfig(tensors=2)\n")
    found = refusal(lambda: load(path))
    assert found.startswith(f"{path}:2: TypeError: ")
    assert "'tensors'" in found


def test_precision_and_remat_may_differ_from_the_start() -> None:
    changed = tiny.model(compute_dtype="bfloat16", remat="full")
    experiments.check(tiny.experiment() | {"rft": tiny.rft(model=changed)})


# Types


def replaced(config: Config, name: str, value: Any) -> Config:
    """`config` with a field of any type whatever, past the checks of its class."""
    section, dot, field = name.partition(".")
    copy = object.__new__(Config)
    for item in dataclasses.fields(Config):
        object.__setattr__(copy, item.name, getattr(config, item.name))
    if dot:
        inner = object.__new__(type(getattr(config, section)))
        for item in dataclasses.fields(inner):
            object.__setattr__(inner, item.name, getattr(getattr(config, section), item.name))
        object.__setattr__(inner, field, value)
        object.__setattr__(copy, section, inner)
    else:
        object.__setattr__(copy, name, value)
    return copy


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", "3", "steps is '3': a value of type int is expected."),
        ("steps", True, "steps is True: a value of type int is expected."),
        ("model.d_model", 16.0, "model.d_model is 16.0: a value of type int is expected."),
        ("optimizer.b1", "0.9", "optimizer.b1 is '0.9': a number is expected."),
        ("data.train", Path("a"), f"data.train is {Path('a')!r}: a value of type str is expected."),
        ("pool.from_rollouts", "a", "pool.from_rollouts is 'a': a tuple of strings is expected."),
        ("method", "rtf", "method is 'rtf': a row of `rft-jax methods`, or my_module:my_method, "
         "is expected; did you mean rft?"),
        ("model", None, "model is None: a ModelConfig is expected."),
        ("rollout", 3, "rollout is 3: a RolloutConfig is expected."),
    ],
)  # fmt: skip
def test_ill_typed_field_is_refused(name: str, value: Any, message: str) -> None:
    config = replaced(tiny.rft(), name, value)
    assert refusal(lambda: check_types(config)) == message
    if name != "method":
        text = refusal(lambda: experiments.check({"sft": tiny.sft(), "rft": config}))
        assert text == f"rft: {message}"


def test_an_int_is_a_number() -> None:
    check_types(replaced(tiny.rft(), "optimizer.learning_rate", 1))


# Fields


@pytest.mark.parametrize("config", tiny.experiment().values(), ids=tiny.experiment().keys())
def test_build_is_the_inverse_of_asdict_through_json(config: Config) -> None:
    assert build(json.loads(json.dumps(dataclasses.asdict(config)))) == (config, ())


def test_build_restores_tuples() -> None:
    config = tiny.rft(pool=PoolConfig(from_rollouts=("a", "b")), rollout=None)
    assert build(json.loads(json.dumps(dataclasses.asdict(config)))) == (config, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 1}, "stepz is not a field; did you mean steps?"),
        ({"model": {"wings": 2}}, "model.wings is not a field."),
        ({"data": {"train": "a"}}, "data.validation is missing, and has no default."),
        ({"model": 3}, "model is 3: a ModelConfig is expected."),
        ({"model": None}, "model is None: a ModelConfig is expected."),
        ({"steps": "3"}, "steps is '3': a value of type int is expected."),
        ({"steps": 0}, "steps is 0: a run makes at least one update."),
    ],
)
def test_build_refuses(change: dict[str, Any], message: str) -> None:
    values = dataclasses.asdict(tiny.sft()) | change
    assert refusal(lambda: build(values)) == message


def test_what_is_missing_gets_its_default() -> None:
    values = dataclasses.asdict(tiny.online_rft())
    del values["refill"], values["checkpoint"], values["model"]["remat"], values["seed"]
    config, defaults = build(values)
    assert config == tiny.online_rft()
    assert defaults == ("seed", "model.remat", "refill", "checkpoint")


def test_every_field_is_flattened_once() -> None:
    config = tiny.rft()
    values = flatten(config)
    none = {
        "refill": RefillConfig, "replay": ReplayConfig, "schedule": ScheduleConfig,
        "curriculum": CurriculumConfig, "critic": CriticConfig,
    }  # fmt: skip
    missing = [f"{name}.{item.name}" for name in none for item in dataclasses.fields(none[name])]
    assert [name for name in field_types() if name not in missing] == [
        name for name in values if name not in none
    ]
    assert replace_fields(config, values) == config
    refill = RefillConfig(accepted=3, max_sampled=16)
    replay = ReplayConfig(sequences_per_step=2, weight=0.1)
    sections = {
        "refill": refill, "replay": replay, "critic": CriticConfig(),
        "curriculum": CurriculumConfig(drop_below=0.1),
        "schedule": ScheduleConfig(("b=jsonl:b",), ("0: 1, 1",)),
    }  # fmt: skip
    full = flatten(tiny.online_rft(method="ppo", **sections))
    assert [name for name in full if name in missing] == missing
    assert flatten(tiny.sft())["rollout"] is None


def test_suggest() -> None:
    assert suggest("stpes", ["steps", "seed"]) == "; did you mean steps?"
    assert suggest("zzz", ["steps", "seed"]) == "."


# Overrides


def test_values_replace_fields_all_at_once() -> None:
    experiment = tiny.experiment()
    assert override(experiment, {}) == experiment
    # Either alone would leave a warm-up as long as the run.
    changes = {"sft.steps": 9, "sft.optimizer.warmup_steps": 5, "rft.pool.rollout_steps": 3}
    runs = override(experiment, changes)
    assert (runs["sft"].steps, runs["sft"].optimizer.warmup_steps) == (9, 5)
    assert runs["rft"].pool == PoolConfig(rollout_steps=3)
    assert runs["online_rft"] == experiment["online_rft"]


@pytest.mark.parametrize("backwards", [False, True])
def test_a_value_for_all_runs(backwards: bool) -> None:
    changes = {"all.steps": 7, "rft.steps": 5, "all.model.tie_embeddings": True}
    if backwards:
        changes = dict(reversed(changes.items()))
    runs = override(tiny.experiment(), changes)
    assert [config.steps for config in runs.values()] == [7, 5, 7]
    assert all(config.model.tie_embeddings for config in runs.values())


def test_a_section_is_added() -> None:
    changes = {"online_rft.refill.accepted": 3, "online_rft.refill.max_sampled": 16}
    runs = override(tiny.experiment(), changes)
    assert runs["online_rft"].refill == RefillConfig(accepted=3, max_sampled=16)
    assert runs["rft"].refill is None


def test_a_list_stands_for_a_tuple() -> None:
    experiment = tiny.experiment() | {
        "rft": tiny.rft(pool=PoolConfig(from_rollouts=("old",)), rollout=None)
    }
    runs = override(experiment, {"rft.pool.from_rollouts": ["a", "b c"]})
    assert runs["rft"].pool == PoolConfig(from_rollouts=("a", "b c"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft.stepz": 3}, "unknown option sft.stepz; did you mean sft.steps?"),
        ({"all.stepz": 3}, "unknown option all.stepz; did you mean all.steps?"),
        ({"steps": 3}, "unknown option steps; did you mean sft.steps?"),
        ({"sft.model": 3}, "sft.model is a section: name one of its fields, such as "
         "sft.model.num_layers."),
        ({"sft.steps": "3"}, "sft: steps is '3': a value of type int is expected."),
        ({"online_rft.refill.accepted": 3},
         "online_rft.refill.accepted: run online_rft (method online_rft) has no section refill: "
         "give online_rft.refill.max_sampled too to add it, or leave the option out."),
        ({"sft.refill.accepted": 3, "sft.refill.max_sampled": 16},
         "sft: refill does nothing under method sft: remove it."),
    ],
)  # fmt: skip
def test_bad_values_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    assert refusal(lambda: override(tiny.experiment(), changes)) == message
