"""A method as a value: one row of DeepSeekMath's eq. 5 (arXiv 2402.03300). Loads no jax.

    grad J = E_{(q, o) ~ D} [ 1/|o| * sum_t GC(q, o, t) * grad log pi_theta(o_t | q, o_<t) ]

A row names D (source), the outputs that are trained on, GC (coefficient), what the sum is divided
by (denominator), and how pi_theta / pi_old enters where outputs are of an older policy (ratio).
Everything else that depends on the method follows from these. The table of rows is
rft_jax/training/methods.py; a row of your own needs no change there: put a Method into the
experiment file, or name it as "my_module:my_method".
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from rft_jax.errors import ConfigError, UserError, suggest
from rft_jax.types import Facts

if TYPE_CHECKING:
    import numpy as np

TABLE = "rft_jax.training.methods"
"""The module whose METHODS a name without a colon stands for."""

Source = Literal["demonstrations", "pool", "policy"]
TrainsOn = Literal["accepted", "decided"]
Coefficient = Callable[[Facts], "np.ndarray"]
Denominator = Literal["sampled", "accepted", "accepted_per_question", "tokens", "constant"]


@dataclass(frozen=True)
class Ratio:
    """How rho = pi_theta / pi_old enters the objective of an output that pi_old has sampled.

    With A = GC, and sg[] for what is not differentiated:

        clipped:  min(rho A, clip(rho, 1 - low, 1 + high) A), for A < 0 at least dual * A
        weight:   sg[clip(rho, 1 - low, 1 + high)] A log pi_theta

    Both have the gradient A grad log pi_theta where pi_theta is pi_old.

    Args:
        per: rho of each token; of the sequence, (pi_theta(o) / pi_old(o)) ** (1 / |o|); or of the
            output, pi_theta(o) / pi_old(o).
        how: clipped (PPO, arXiv 1707.06347, eq. 7) or weight (CISPO, arXiv 2506.13585).
        low: 1 sets no lower bound.
        high: inf sets no upper bound.
        dual: the bound on rho for A < 0 (arXiv 1912.09729); 0 sets none.
        of: all outputs, or those of A < 0 only; the others have rho = 1.
    """

    per: Literal["token", "sequence", "output"] = "token"
    how: Literal["clipped", "weight"] = "clipped"
    low: float = 0.2
    high: float = 0.2
    dual: float = 0.0
    of: Literal["all", "negatives"] = "all"

    def __post_init__(self) -> None:
        for field, choices in (
            ("per", ("token", "sequence", "output")),
            ("how", ("clipped", "weight")),
            ("of", ("all", "negatives")),
        ):
            _one_of(f"Ratio.{field}", getattr(self, field), choices)
        if not 0 <= self.low <= 1:
            raise ConfigError(f"the ratio's lower clip is {self.low}: it must lie in [0, 1].")
        if not self.high >= 0:
            raise ConfigError(f"the ratio's upper clip is {self.high}: it must be 0 or more.")
        if self.dual and (self.how != "clipped" or not self.dual > 1 + self.high):
            raise ConfigError(
                f"the ratio's dual clip is {self.dual}: it bounds a clipped ratio from beyond "
                f"1 + {self.high}, its upper clip; 0 sets none."
            )


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(
            f"{name} is {value!r}: one of {', '.join(choices)} is expected"
            f"{suggest(str(value), choices)}"
        )


@dataclass(frozen=True)
class Method:
    """A source of samples and a gradient coefficient.

    Args:
        source: where outputs come from: the questions' own solutions, a pool sampled once from the
            frozen start, or the policy of the step.
        trains_on: which outputs may have a coefficient: accepted ones, or all that are decided
            (not undecided). Only these cross whole between hosts.
        coefficient: the facts of B decided outputs -> GC of each, a float array [B], the same at
            all tokens of an output, or [B, T], of each token, 0 after an output's end. Outputs of
            GC 0 are not trained on and cost nothing.
        name: as messages, config.json and the model card call it; its function's without.
        about: one line: what it is, with its source.
        denominator: what the sum is divided by, unless objective.denominator says otherwise
            (rft_jax/training/objective.py).
        ratio: how pi_theta / pi_old enters where outputs are of an older policy; None for a row
            that has no ratio.
        group: whether GC needs other outputs of the question (a baseline).
        rewards: whether GC reads rewards; else it reads verdicts only.
        log_ratios: whether GC reads log pi_theta / pi_ref, so that it is computed again before each
            update, of whole groups; in `Facts` of a selection they are 0, and an output whose GC is
            0 there is not trained on.
        values: whether GC reads advantages over a value function, which the run then trains.
        steps: whether GC reads the rewards of steps (facts.step_rewards).
        equation: of the source; formula: GC in symbols; kl: the KL to pi_ref that the source has,
            which objective.kl_* set, or that is in GC; all for `rft-jax methods`.
    """

    source: Source
    trains_on: TrainsOn
    coefficient: Coefficient
    name: str = ""
    about: str = ""
    denominator: Denominator = "sampled"
    ratio: Ratio | None = None
    group: bool = False
    rewards: bool = False
    log_ratios: bool = False
    values: bool = False
    steps: bool = False
    equation: str = ""
    formula: str = ""
    kl: str = ""

    def __post_init__(self) -> None:
        for field, choices in (
            ("source", ("demonstrations", "pool", "policy")),
            ("trains_on", ("accepted", "decided")),
            ("denominator", get_args(Denominator)),
        ):
            _one_of(f"Method.{field}", getattr(self, field), choices)
        if not callable(self.coefficient):
            raise ConfigError(
                f"Method.coefficient is {self.coefficient!r}: a function of Facts is expected."
            )
        if not isinstance(self.ratio, Ratio | None):
            raise ConfigError(f"Method.ratio is {self.ratio!r}: a Ratio or None is expected.")
        for field, sources in (
            ("steps", ("pool", "policy")),
            ("log_ratios", ("pool", "policy")),
            ("values", ("policy",)),
        ):
            if getattr(self, field) and self.source not in sources:
                raise ConfigError(
                    f"Method.{field} is True and its source is {self.source!r}: the source must "
                    f"be {' or '.join(sources)}."
                )
        for field in ("log_ratios", "values"):
            if getattr(self, field) and self.trains_on != "decided":
                raise ConfigError(
                    f"Method.{field} is True and its trains_on is {self.trains_on!r}: all decided "
                    "outputs are scored; set trains_on to 'decided'."
                )
        for field in ("values", "steps"):
            if self.log_ratios and getattr(self, field):
                raise ConfigError(
                    f"Method.{field} and Method.log_ratios are True: a coefficient that is "
                    f"computed again before each update does not see {field}; choose one."
                )


def resolve(method: str | Method) -> Method:
    """The row that a config's `method` stands for.

    Args:
        method: a row; the name of one in the table; or "my_module:my_method", imported.

    Raises:
        ConfigError: there is no such row.
    """
    if isinstance(method, Method):
        coefficient = method.coefficient
        name = method.name or getattr(coefficient, "__qualname__", type(coefficient).__name__)
        return replace(method, name=name)
    if not isinstance(method, str):
        raise ConfigError(f"method is {method!r}: a name or a Method is expected.")
    return _named(method)


@functools.cache
def _named(method: str) -> Method:
    module, colon, attribute = method.partition(":")
    if not colon:
        table: Mapping[str, Method] = importlib.import_module(TABLE).METHODS
        if method not in table:
            raise ConfigError(
                f"method is {method!r}: a row of `rft-jax methods`, or my_module:my_method, is "
                f"expected{suggest(method, table)}"
            )
        return table[method]
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"method is {method!r}, which cannot be imported ({text}): name a module beside the "
            "experiment file, or an installed one, and a Method in it."
        ) from error
    if not isinstance(found, Method):
        raise ConfigError(
            f"method is {method!r}, which is of type {type(found).__name__}: a Method is expected."
        )
    return replace(found, name=method)


def to_json(method: str | Method) -> str | dict[str, Any]:
    """What config.json holds of a method: the name of a row of the table, or what a row says of
    itself, so that a run is read where its module is not at hand."""
    if isinstance(method, str) and ":" not in method:
        return method
    row = resolve(method)
    if importlib.import_module(TABLE).METHODS.get(row.name) == row:
        return row.name
    values = {name: getattr(row, name) for name in _SAVED}
    values |= {name: value for name in _FLAGS if (value := getattr(row, name)) != _FLAGS[name]}
    given = getattr(row.coefficient, "keywords", {})  # of a functools.partial
    settings = {k: v for k, v in given.items() if isinstance(v, bool | int | float | str)}
    values |= {"settings": settings} if settings else {}
    return values | ({"ratio": asdict(row.ratio)} if row.ratio else {})


_SAVED = ("name", "source", "trains_on", "about")
_FLAGS = dict.fromkeys(("group", "rewards", "log_ratios", "values", "steps"), False) | {
    "denominator": "sampled"
}
"""What a config is checked by, saved where it differs from these."""


def from_json(value: str | Mapping[str, Any]) -> str | Method:
    """The inverse of `to_json`; the coefficient of a row that is not of the table is not known,
    and computing with it raises UserError."""
    if isinstance(value, str):
        return value
    if not {*_SAVED} <= {*value} <= {*_SAVED, *_FLAGS, "ratio", "settings"}:
        raise ConfigError(f"method is {dict(value)!r}: a name, or a row's fields, are expected.")
    ratio = Ratio(**value["ratio"]) if value.get("ratio") else None

    def unknown(facts: Facts, **settings: object) -> np.ndarray:
        raise UserError(
            f"method {value['name']} was defined outside rft_jax and its coefficient is not saved: "
            "train from the experiment file."
        )

    fields = {name: v for name, v in value.items() if name != "settings"} | {"ratio": ratio}
    return Method(coefficient=functools.partial(unknown, **value.get("settings", {})), **fields)
