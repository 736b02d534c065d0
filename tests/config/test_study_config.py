"""Studies: which runs they make, and the one line each mistake gets."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_study

from rft_jax.config import PoolConfig, RefillConfig, Study
from rft_jax.config import experiment as experiments
from rft_jax.config.study import budget
from rft_jax.errors import ConfigError

RATE = "optimizer.learning_rate"


@pytest.fixture(autouse=True)
def _same_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_runs_of_a_study() -> None:
    study = tiny_study.study()
    runs = study.runs()
    experiments.check(runs)
    assert list(runs) == [
        f"{name}_seed{seed}{suffix}"
        for seed in (0, 1, 2)
        for name, suffixes in {
            "sft": [""], "rft": ["_try0", "_try1"], "online_rft": ["_try0", "_try1"],
        }.items()
        for suffix in suffixes
    ]  # fmt: skip
    for name, config in runs.items():
        seed = int(re.findall(r"seed(\d)", name)[0])
        assert config.seed == seed
        # What chooses does not see the test questions.
        assert bool(config.data.test) == (seed > 0)
        if not name.startswith("sft"):
            assert config.init_from == f"run:sft_seed{seed}"
            assert config.optimizer.learning_rate == (1e-2 if name.endswith("1") else 1e-3)
    assert study.tuning() == [name for name in runs if "seed0" in name]
    assert study.compared({"rft": 1, "online_rft": 0})[2] == {
        "sft": "sft_seed2", "rft": "rft_seed2_try1", "online_rft": "online_rft_seed2_try0",
    }  # fmt: skip


def test_one_setting_is_no_choice() -> None:
    for grid in ({}, {RATE: (1e-3,)}):
        study = tiny_study.study(grid=grid)
        assert study.tuning() == []
        assert list(study.runs()) == [
            f"{name}_seed{seed}" for seed in (1, 2) for name in ("sft", "rft", "online_rft")
        ]


def test_every_combination_is_tried() -> None:
    study = tiny_study.study(grid={RATE: (1e-3, 1e-2), "optimizer.b2": (0.9, 0.95, 0.99)})
    assert len(study.tries) == 6
    assert len(study.tuning()) == 1 + 2 * 6
    last = study.runs()["rft_seed0_try5"].optimizer
    assert (last.learning_rate, last.b2) == (1e-2, 0.99)


def test_one_start_for_all_seeds() -> None:
    study = tiny_study.study(starts_per_seed=False)
    runs = study.runs()
    assert [name for name in runs if name.startswith("sft")] == ["sft"]
    assert runs["sft"] == study.starts["sft"]
    assert {config.init_from for config in runs.values()} == {"random", "run:sft"}
    assert study.compared({})[1]["sft"] == study.compared({})[2]["sft"] == "sft"
    with pytest.raises(ConfigError, match="two runs of the study are called sft_seed1"):
        tiny_study.study(
            starts_per_seed=False, grid={}, arms={"sft": study.arms["rft"]}, baseline="",
            starts={"sft_seed1": study.starts["sft"]}, equal=(),
        ).runs()  # fmt: skip


def test_budgets() -> None:
    arms = tiny_study.study().arms
    expected = {"samples": 4 * 8 * 4, "updates": 4, "tokens": 4 * 8 * 4 * 8}
    assert budget(arms["rft"]) == budget(arms["online_rft"]) == expected
    sft = tiny_study.study().starts["sft"]
    assert budget(sft) == {"samples": 0, "updates": 8, "tokens": 0}
    update = dataclasses.replace(arms["online_rft"].update, minibatches=2)
    halved = dataclasses.replace(arms["online_rft"], update=update)
    assert budget(halved)["samples"] == 2 * 8 * 4
    filled = dataclasses.replace(
        arms["online_rft"], refill=RefillConfig(max_sampled=64, accepted=8)
    )
    assert budget(filled)["samples"] is None


def changed(arm: str, **changes: Any) -> dict[str, Any]:
    arms = tiny_study.study().arms
    return {"arms": arms | {arm: dataclasses.replace(arms[arm], **changes)}}


STUDY = tiny_study.study()
RFT, SFT = STUDY.arms["rft"], STUDY.starts["sft"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {}}, "arms is empty: a study compares at least one arm."),
        ({"arms": {"rft": 3}}, "rft is of type int: Config is expected."),
        ({"starts": {"rft": RFT}}, "rft is the name of a start and of an arm: rename one of them."),
        ({"baseline": "rtf"}, "baseline is 'rtf', which is no arm; did you mean rft?"),
        ({"seeds": 0}, "seeds is 0: a whole number of at least 1 is expected."),
        ({"last": 1.5}, "last is 1.5: a whole number of at least 1 is expected."),
        ({"grid": {"optimizer.learning_rates": (1,)}},
         "grid names optimizer.learning_rates, which is no field; did you mean "
         "optimizer.learning_rate?"),
        ({"grid": {RATE: ()}}, f"grid gives {RATE} as (): a tuple of the values to try"),
        ({"grid": {RATE: 1e-3}}, f"grid gives {RATE} as 0.001: a tuple of the values to try"),
        ({"grid": {RATE: ("fast",)}}, f"{RATE} is 'fast': a number is expected."),
        ({"grid": {RATE: (1e-3, -1.0)}}, "optimizer.learning_rate is -1.0"),
        ({"grid": {"seed": (0, 1)}}, "grid names seed: a study's seeds are set by its field"),
        ({"grid": {"refill.accepted": (1, 2)}},
         "grid names refill.accepted, and arm rft has no section refill: every arm has the same"),
        ({"score": "pass_at/4"},
         "score is 'pass_at/4', and arm rft measures greedy/accuracy, pass_at/1, pass_at/2 on"),
        (changed("rft", data=dataclasses.replace(RFT.data, test="")), "rft: data.test is empty"),
        (changed("online_rft", data=dataclasses.replace(RFT.data, test="jsonl:other.jsonl")),
         "online_rft: data.test is 'jsonl:other.jsonl' but 'jsonl:questions.jsonl[:6]' in arm rft"),
        ({"starts": {"sft": dataclasses.replace(
            SFT, data=dataclasses.replace(SFT.data, more_test=("b=jsonl:b",)))}},
         "sft: data.more_test is ('b=jsonl:b',) but () in arm rft: set both alike, or leave it"),
        (changed("online_rft",
                 evaluation=dataclasses.replace(RFT.evaluation, test_samples_per_question=8)),
         "online_rft: evaluation.test_samples_per_question is 8 but 4 in arm rft"),
        (changed("rft", steps=2, evaluation=dataclasses.replace(RFT.evaluation, every_steps=3)),
         "rft: evaluation.every_steps is 3 and the grid is chosen from"),
        (changed("online_rft", steps=6), "online_rft: its budget is 192 samples but 128 in arm"),
        (changed("rft", pool=PoolConfig(rollout_steps=2)),
         "online_rft: its budget is 128 samples but 64 in arm rft: set both alike, or leave"),
        ({"equal": ("updates",)} | changed("online_rft", steps=6),
         "online_rft: its budget is 6 updates but 4 in arm rft"),
        ({"grid": {"steps": (4, 6)}, "equal": ("updates",)}, "rft: its budget is 6 updates but 4"),
        ({"equal": ("tokens",)}
         | changed("online_rft", data=dataclasses.replace(RFT.data, max_completion_tokens=6)),
         "online_rft: its budget is 768 tokens but 1,024 in arm rft"),
        (changed("online_rft", refill=RefillConfig(max_sampled=64, accepted=8)),
         "online_rft: its samples are not known before it runs (refill, or pool.from_rollouts)"),
        ({"equal": ("sample",)}, "equal names 'sample'; did you mean samples?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(changes: dict[str, Any], message: str) -> None:
    # Past the type checker of the tests.
    study = object.__new__(Study)
    for item in dataclasses.fields(Study):
        value = changes.get(item.name, getattr(STUDY, item.name))
        object.__setattr__(study, item.name, value)
    with pytest.raises(ConfigError) as error:
        study.__post_init__()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unequal_budgets_that_are_not_said_to_be_equal() -> None:
    changes = changed("rft", pool=PoolConfig(rollout_steps=2))
    assert tiny_study.study(equal=("updates",), **changes).seeds == 2


def test_load(tmp_path: Path) -> None:
    path = tiny_study.write_study(tmp_path)
    study = experiments.load_study(path)
    assert isinstance(study, Study)
    assert experiments.load(path) == study.runs()  # for rft-jax run and plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def experiment():\n    return {}\n", "has no function study(): define it to return a"),
        ("def study():\n    return {}\n", "study() returned dict: a Study is expected."),
        ("def study():\n    return tiny_study.study(seeds=0)\n", "study.py:3: seeds is 0: a whole"),
        ("def study():\n    return tiny_study.study(starts={})\n",
         "rft_seed0_try0: init_from is 'run:sft', which names no earlier run"),
        ("def study():\n    return tiny_study.study(bseline='rft')\n", "study.py:3: TypeError"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.py"
    path.write_text(f"import tiny_study\n{text}", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        experiments.load_study(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
