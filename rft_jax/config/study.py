"""A study: arms compared over seeds, each with settings chosen on validation. Loads no jax."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from rft_jax.config.fields import require
from rft_jax.config.run import Config
from rft_jax.config.serialize import check_value, differences, field_types, replace_fields
from rft_jax.errors import ConfigError, suggest_or_list

Budget = Literal["samples", "updates", "tokens"]

TUNING_SEED = 0
"""Its runs choose each arm's settings; the seeds that are compared are 1, 2, ..."""

_ASKED = ("data.validation", "data.test", "data.more_", "evaluation.")
"""Fields that say on which questions, when and how arms are evaluated: the same for all."""


@dataclass(frozen=True)
class Study:
    """Arms on equal terms: the same seeds, questions, budgets and tries (docs/studies.md).

    Seed 0 tries every combination of the grid for each arm, and the best on validation questions is
    what seeds 1, 2, ... run; only these are evaluated on the test questions.
    """

    arms: Mapping[str, Config]
    """What is compared, by name. An arm starts from a start by `init_from="run:NAME"`."""
    starts: Mapping[str, Config] = field(default_factory=dict)
    """Runs that come before, such as SFT."""
    starts_per_seed: bool = True
    """Whether each seed makes its own starts; else they are made once, with their own seed."""
    baseline: str = ""
    """The arm that the others are compared with; empty for the first."""
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Values of fields, each combination of which is tried for every arm."""
    score: str = "greedy/accuracy"
    """What chooses: greedy/accuracy or pass_at/K, on validation questions."""
    last: int = 1
    """Evaluations at the end of a run whose mean is its score."""
    seeds: int = 5
    """How many seeds are compared."""
    equal: Sequence[Budget] = ("samples", "updates")
    """What all arms must have the same of: samples (outputs), updates, tokens (sampled; as many at
    most before the runs, and the report marks an arm that took other numbers of them)."""

    @property
    def tries(self) -> list[dict[str, Any]]:
        """Every combination of the grid's values; an empty one without a grid."""
        names, combinations = list(self.grid), itertools.product(*self.grid.values())
        return [dict(zip(names, values, strict=True)) for values in combinations]

    @property
    def base(self) -> str:
        """The name of the arm that the others are compared with."""
        return self.baseline or next(iter(self.arms))

    def name(self, run: str, seed: int, tried: int = 0) -> str:
        """The run of an arm, or of a start, with a seed. tried: number of the combination."""
        if run in self.starts:
            return f"{run}_seed{seed}" if self.starts_per_seed else run
        return f"{run}_seed{seed}" + (f"_try{tried}" if len(self.tries) > 1 else "")

    def tuning(self) -> list[str]:
        """The runs that choose, starts included; none where there is no choice."""
        tries = range(len(self.tries))
        if len(tries) == 1:
            return []
        names = [self.name(start, TUNING_SEED) for start in self.starts]
        return names + [self.name(arm, TUNING_SEED, one) for arm in self.arms for one in tries]

    def compared(self, chosen: Mapping[str, int]) -> dict[int, dict[str, str]]:
        """The runs that are compared: by seed, and by the name of the start or arm.

        Args:
            chosen: number of the combination of each arm.
        """
        return {
            seed: {
                run: self.name(run, seed, chosen.get(run, 0)) for run in (*self.starts, *self.arms)
            }
            for seed in range(1, self.seeds + 1)
        }

    def runs(self) -> dict[str, Config]:
        """Every run that the study may need, in order: an experiment."""
        every = [] if self.starts_per_seed else list(self.starts.items())
        for seed in range(TUNING_SEED if self.tuning() else 1, self.seeds + 1):
            if self.starts_per_seed:
                every += [
                    (self.name(start, seed), self._of_seed(config, seed))
                    for start, config in self.starts.items()
                ]
            every += [
                (self.name(arm, seed, tried), self._of_seed(replace_fields(config, values), seed))
                for arm, config in self.arms.items()
                for tried, values in enumerate(self.tries)
            ]
        for name, count in Counter(name for name, _ in every).items():
            require(count == 1, f"two runs of the study are called {name}: rename an arm.")
        return dict(every)

    def _of_seed(self, config: Config, seed: int) -> Config:
        kind, _, target = config.init_from.partition(":")
        start, at, which = target.partition("@")
        init_from = config.init_from
        if kind == "run" and start in self.starts:
            init_from = f"run:{self.name(start, seed)}{at}{which}"
        # What chooses does not see the test questions.
        tunes = seed == TUNING_SEED
        data = replace(config.data, test="", more_test=()) if tunes else config.data
        return replace(config, seed=seed, init_from=init_from, data=data)

    def __post_init__(self) -> None:
        require(bool(self.arms), "arms is empty: a study compares at least one arm.")
        for name, config in {**self.starts, **self.arms}.items():
            found = type(config).__name__
            require(isinstance(config, Config), f"{name} is of type {found}: Config is expected.")
        for name in set(self.starts) & set(self.arms):
            raise ConfigError(f"{name} is the name of a start and of an arm: rename one of them.")
        if self.base not in self.arms:
            end = suggest_or_list(self.base, self.arms)
            raise ConfigError(f"baseline is {self.baseline!r}, which is no arm{end}")
        for name in ("seeds", "last"):
            value = getattr(self, name)
            require(
                type(value) is int and value >= 1,
                f"{name} is {value!r}: a whole number of at least 1 is expected.",
            )
        self._check_grid()
        first = self.arms[self.base]
        for name, config in self.arms.items():
            self._check_asked(name, config, first)
        for name, config in self.starts.items():
            for field_name in ("test", "more_test"):
                ours, theirs = (getattr(one.data, field_name) for one in (config, first))
                require(
                    not ours or ours == theirs,
                    f"{name}: data.{field_name} is {ours!r} but {theirs!r} in arm {self.base}: set "
                    "both alike, or leave it empty.",
                )
        self._check_budgets()

    def _check_grid(self) -> None:
        for name, values in self.grid.items():
            if name not in field_types():
                raise ConfigError(
                    f"grid names {name}, which is no field{suggest_or_list(name, field_types())}"
                )
            require(name != "seed", "grid names seed: a study's seeds are set by its field seeds.")
            require(
                isinstance(values, tuple | list) and len(values) > 0,
                f"grid gives {name} as {values!r}: a tuple of the values to try is expected.",
            )
            for value in values:
                check_value(name, value)
            section, dot, _ = name.partition(".")
            for arm, config in self.arms.items():
                require(
                    not dot or getattr(config, section) is not None,
                    f"grid names {name}, and arm {arm} has no section {section}: every arm has the "
                    "same tries.",
                )

    def _check_asked(self, name: str, config: Config, first: Config) -> None:
        """One set of questions for all, and what chooses is measured."""
        require(
            bool(config.data.test),
            f"{name}: data.test is empty: a study compares its arms on test questions.",
        )
        for values in self.tries:
            try:
                tried = replace_fields(config, values)
            except ConfigError as error:
                raise ConfigError(f"{name} with {values}: {error}") from error
            for field_name, (ours, theirs) in differences(tried, first).items():
                asked = field_name.startswith(_ASKED) and not field_name.endswith("_per_batch")
                require(
                    not asked,
                    f"{name}: {field_name} is {ours!r} but {theirs!r} in arm {self.base}: arms are "
                    "compared on the same questions; set both alike.",
                )
        number = config.evaluation.samples_per_question
        ks = [k for k in range(1, number + 1) if k == number or k & (k - 1) == 0]
        known = ["greedy/accuracy", *(f"pass_at/{k}" for k in ks)]
        require(
            self.score in known,
            f"score is {self.score!r}, and arm {name} measures {', '.join(known)} on validation "
            f"questions (evaluation.samples_per_question is {number}): choose one of these.",
        )
        require(
            len(self.tries) == 1 or 0 < config.evaluation.every_steps <= config.steps,
            f"{name}: evaluation.every_steps is {config.evaluation.every_steps} and the grid is "
            f"chosen from on validation questions: evaluate within {config.steps} steps.",
        )

    def _check_budgets(self) -> None:
        for word in self.equal:
            if word not in get_args(Budget):
                raise ConfigError(f"equal names {word!r}{suggest_or_list(word, get_args(Budget))}")
            ours = budget(replace_fields(self.arms[self.base], self.tries[0]))[word]
            for arm, config in self.arms.items():
                for values in self.tries:
                    theirs = budget(replace_fields(config, values))[word]
                    require(
                        theirs is not None,
                        f"{arm}: its {word} are not known before it runs (refill, or "
                        f"pool.from_rollouts), and equal names {word}: leave that out of equal.",
                    )
                    require(
                        theirs == ours,
                        f"{arm}: its budget is {theirs:,} {word} but {ours:,} in arm {self.base}: "
                        f"set both alike, or leave {word} out of equal.",
                    )


def budget(config: Config) -> dict[str, int | None]:
    """Outputs that a run samples to train on, its updates and the most tokens it may sample; None
    for what only the run itself can say."""
    samples: int | None = 0
    if config.refill is not None or (config.pool is not None and config.pool.from_rollouts):
        samples = None
    elif config.rollout is not None:
        sampled = config.rollout.questions_per_step * config.rollout.samples_per_question
        own = -(-config.steps // config.update.per_rollout)
        pool = config.pool
        samples = sampled * (pool.rollout_steps * config.num_pools if pool is not None else own)
    tokens = None if samples is None else samples * config.data.max_completion_tokens
    return {"samples": samples, "updates": config.steps, "tokens": tokens}
