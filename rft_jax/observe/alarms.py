"""Alarms: signs in a run's metrics that it goes wrong, a table of small functions. Imports no jax.

They are computed from the lines of metrics.jsonl only, so that a resumed run sees what an
undisturbed one saw, and any run can be looked at afterwards. None is of entropy only, which falls
in healthy runs too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from rft_jax.config import AlarmsConfig, CheckpointConfig

Array: TypeAlias = np.ndarray

BEYOND_NOISE = 6.0
"""Standard errors by which one mean over a window must be below another."""


SOLVED = 0.9
"""Pass rate from which on outputs agree because they are right."""


class Alarm(NamedTuple):
    """A sign from one step on.

    name: in ALARMS; since, until: the step that raised it, and the first without it, None while it
    lasts; what: was measured; value, reference: of that at `since`, and what it is held against.
    """

    name: str
    since: int
    until: int | None
    what: str
    value: float
    reference: float

    def __str__(self) -> str:
        return (
            f"{self.name} since step {self.since}: {self.what} is {self.value:.3g}, against "
            f"{self.reference:.3g}"
        )


class Sign(NamedTuple):
    """What one measurement says step by step: whether it is a sign, its value, what that is held
    against."""

    what: str
    steps: Array
    on: Array
    value: Array
    reference: Array


class Kind(NamedTuple):
    """A row of the table. remedies: settings that are at hand."""

    find: Callable[[Lines, AlarmsConfig], Iterable[Sign]]
    meaning: str
    remedies: tuple[str, ...]


class Lines:
    """The lines of steps and of validation, as columns. measure: checkpoint.measure."""

    def __init__(
        self,
        lines: Iterable[Mapping[str, Any]] = (),
        measure: str = CheckpointConfig.measure,
    ) -> None:
        self.measure = tuple(measure.split("+"))
        names = dict.fromkeys(("step", *_METRICS, *self.measure))
        self._places = {name: place for place, name in enumerate(names)}
        self._rows: dict[str, list[list[float]]] = {"train": [], "validation": []}
        self._columns: dict[str, Array] = {}
        for line in lines:
            self.add(line)

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line of metrics.jsonl."""
        # The train line of step 0 is the pool's.
        if line["kind"] == "validation" or (line["kind"] == "train" and line["step"]):
            row = [number(line.get(name)) for name in self._places]
            self._rows[line["kind"]].append(row)
            self._columns.pop(line["kind"], None)

    def columns(self, kind: str, *names: str) -> Array:
        """Steps and these metrics, of the lines that have them all."""
        if kind not in self._columns:  # once a line, not once a look
            rows = np.array(self._rows[kind], float).reshape(-1, len(self._places))
            self._columns[kind] = rows.T.copy()
        found = self._columns[kind][[self._places[name] for name in ("step", *names)]]
        return found[:, np.isfinite(found).all(0)]

    def means(self, window: int, *names: str) -> Array:
        """Steps and means over a window up to them, of train lines that have all of these; column
        by column with the start's first, none without a whole window."""
        found = self.columns("train", *names)
        if found.shape[1] < window:
            return found[:, :0]
        means = sliding_window_view(found, window, axis=1).mean(-1)
        means[0] = found[0, window - 1 :]
        return means


def number(value: object) -> float:
    """A metric as a float; NaN for what is none."""
    return float(value) if isinstance(value, int | float | np.number) else math.nan


def measured(metrics: Mapping[str, Any], measure: str) -> float:
    """checkpoint.measure of an evaluation: the mean of the metrics that it names; NaN where one is
    missing."""
    return float(np.mean([number(metrics.get(name)) for name in measure.split("+")]))


def raised(lines: Lines, config: AlarmsConfig) -> list[Alarm]:
    """What a run's lines so far say, in the order of steps: all that has been raised, and of it
    what lasts (until is None)."""
    found = []
    for name, kind in ALARMS.items():
        if getattr(config, "patience" if name == "no_improvement" else name):
            for sign in kind.find(lines, config):
                found += _episodes(name, sign)
    return sorted(found, key=lambda alarm: alarm.since)


def _episodes(name: str, sign: Sign) -> list[Alarm]:
    edges = np.flatnonzero(np.diff(sign.on.astype(int), prepend=0, append=0))
    last = len(sign.steps)
    return [
        Alarm(
            name, int(sign.steps[first]), None if end == last else int(sign.steps[end]),
            sign.what, float(sign.value[first]), float(sign.reference[first]),
        )
        for first, end in edges.reshape(-1, 2)
    ]  # fmt: skip


def _over(on: Array, count: int, how: Callable[..., Array]) -> Array:
    """How many (`np.sum`), any or all of the last `count` places are true."""
    windows = sliding_window_view(np.pad(on, (count - 1, 0)), count) if on.size else on[:, None]
    return how(windows, axis=-1)


def _held(on: Array, window: int) -> Array:
    """A sign of training lasts for a window of steps beyond what shows it."""
    return _over(on, window, np.any)


def _in_a_row(on: Array, count: int) -> Array:
    return _over(on, count, np.all)


def _first(values: Array) -> Array:
    return np.full_like(values, values[0] if values.size else 0)


def _collapse(lines: Lines, config: AlarmsConfig) -> Iterable[Sign]:
    steps, deviation, rate, entropy = lines.means(
        config.window, "questions/reward_deviation", "pass_rate", "policy/entropy"
    )
    # It falls with the pass rate's own variance, which is no sign.
    spread = deviation / np.sqrt(np.maximum(rate * (1 - rate), 1e-9))
    low = (spread < config.collapse * _first(spread)) & (rate < SOLVED)
    low &= entropy < config.collapse * _first(entropy)
    what = "spread of rewards within questions, with the entropy,"
    yield Sign(what, steps, _held(low, config.window), spread, _first(spread))


def _diversity(lines: Lines, config: AlarmsConfig) -> Iterable[Sign]:
    for what, name in (
        ("questions solved by any output", "solved"),
        ("distinct correct outputs", "distinct"),
    ):
        # Greedy outputs have no diversity, and no distinct ones.
        steps, change, error, _ = lines.columns(
            "validation", f"questions/{name}_change", f"questions/{name}_change_error", _DISTINCT
        )
        limit = -config.diversity * error
        low = _in_a_row(change < limit, config.evaluations)
        yield Sign(f"change of {what} since the start", steps, low, change, limit)


def _forgetting(lines: Lines, config: AlarmsConfig) -> Iterable[Sign]:
    steps, lost, change, error = lines.columns(
        "validation", "questions/lost", "questions/solved_change", "questions/solved_change_error"
    )
    # Of many a question that is solved now and then, some are lost by chance, and others gained.
    high = _in_a_row((lost > config.forgetting) & (change < -2 * error), config.evaluations)
    limit = np.full_like(lost, config.forgetting)
    yield Sign("share lost of the questions that the start solved", steps, high, lost, limit)


def _fallen(lines: Lines, window: int, *names: str) -> tuple[Array, Array, Array]:
    """Means over windows, with the pass rate first; its best until then, and whether it is below
    that beyond noise."""
    means = lines.means(window, "pass_rate", *names)
    best = np.maximum.accumulate(means[1]) if means.size else means[1]
    # From neighbouring steps, so that a trend is not taken for noise.
    apart = np.diff(lines.columns("train", "pass_rate", *names)[1]) ** 2
    variance = np.cumsum(apart) / np.arange(1, 1 + len(apart)) / 2
    error = np.sqrt(2 * variance[window - 2 :] / window)[: means.shape[1]]
    return means, best, best - means[1] > BEYOND_NOISE * error


def _pass_rate(lines: Lines, config: AlarmsConfig) -> Iterable[Sign]:
    (steps, rate), best, beyond = _fallen(lines, config.window)
    low = _held(beyond & (rate < (1 - config.pass_rate) * best), config.window)
    yield Sign("pass rate in training", steps, low, rate, best)


def _entropy(lines: Lines, config: AlarmsConfig) -> Iterable[Sign]:
    means, _best, fallen = _fallen(lines, config.window, "policy/entropy", *_FINISHED)
    steps, _rate, entropy, sampled, finished = means
    cut = 1 - finished / sampled
    worse = fallen | (cut - _first(cut) > config.truncation / 2)
    high = (entropy > config.entropy * _first(entropy)) & worse
    what = "entropy, with the pass rate falling or truncation rising,"
    yield Sign(what, steps, _held(high, config.window), entropy, _first(entropy))


def _gradient_norm(lines: Lines, config: AlarmsConfig) -> Iterable[Sign]:
    steps, norm = lines.columns("train", "optimizer/gradient_norm")
    before = 5 * config.window
    padded = np.pad(norm, (before, 0), constant_values=math.nan)
    windows = sliding_window_view(padded, before)[config.window : -1]
    steps, norm = steps[config.window :], norm[config.window :]
    # Whole windows have no NaN, which takes ten times the time.
    medians = [np.nanmedian(windows[:before], axis=-1), np.median(windows[before:], axis=-1)]
    usual = np.concatenate(medians) if len(norm) else norm
    twice = _over(norm > config.gradient_norm * usual, config.window, np.sum) >= 2
    yield Sign("gradient norm, twice within a window,", steps, twice, norm, usual)


def _truncation(lines: Lines, config: AlarmsConfig) -> Iterable[Sign]:
    steps, sampled, finished = lines.means(config.window, *_FINISHED)
    cut = 1 - finished / sampled
    high = _held(cut - _first(cut) > config.truncation, config.window)
    yield Sign("share of outputs cut at the limit", steps, high, cut, _first(cut))


def _overconfidence(lines: Lines, config: AlarmsConfig) -> Iterable[Sign]:
    steps, error, sure, right, noise = lines.columns(
        "validation", "calibration/error", "calibration/confidence", "greedy/accuracy",
        "greedy/standard_error",
    )  # fmt: skip
    surer = (error - _first(error) > config.overconfidence) & (
        sure - _first(sure) > config.overconfidence
    )
    high = _in_a_row(surer & (right <= _first(right) + _first(noise)), config.evaluations)
    yield Sign("calibration error, accuracy not rising,", steps, high, error, _first(error))
    steps, wrong, rate = lines.means(config.window, "policy/log_prob_incorrect", "pass_rate")
    high = _held((wrong > config.collapse * _first(wrong)) & (rate <= _first(rate)), config.window)
    what = "log-prob of incorrect outputs, pass rate not rising,"
    yield Sign(what, steps, high, wrong, _first(wrong))


def _mismatch(lines: Lines, config: AlarmsConfig) -> Iterable[Sign]:
    steps, apart = lines.means(config.window, "policy/log_prob_mismatch_mean")
    high = (apart > config.mismatch) & (apart > 2 * _first(apart))
    what = "difference of the sampler's and the trainer's log-probs"
    yield Sign(what, steps, _held(high, config.window), apart, _first(apart))


def _no_improvement(lines: Lines, config: AlarmsConfig) -> Iterable[Sign]:
    steps, *parts = lines.columns("validation", *lines.measure)
    value = np.mean(parts, axis=0)
    best = np.maximum.accumulate(value)
    new = np.diff(best, prepend=-math.inf) > 0
    places = np.arange(len(value))
    late = places - np.maximum.accumulate(np.where(new, places, 0)) >= config.patience
    yield Sign(" + ".join(lines.measure), steps, late, value, best)


_DISTINCT = "questions/distinct_change"
_FINISHED = ("funnel/sampled", "funnel/finished")
_METRICS = (
    "pass_rate", "policy/entropy", "policy/log_prob_incorrect", "questions/reward_deviation",
    *_FINISHED,
    "optimizer/gradient_norm", "policy/log_prob_mismatch_mean", "questions/lost",
    "questions/solved_change", "questions/solved_change_error", _DISTINCT, f"{_DISTINCT}_error",
    "calibration/error", "calibration/confidence",
    "greedy/accuracy", "greedy/standard_error",
)  # fmt: skip

_SLOWER = "optimizer.learning_rate lower"
_NEGATIVES = "method=w_reinforce or rloo"
_DISTINCT_ONLY = "selection.dedupe=equations"
ALARMS: Mapping[str, Kind] = {
    "collapse": Kind(
        _collapse, "the outputs of a question come to agree, right or wrong",
        (_DISTINCT_ONLY, _NEGATIVES, "rollout.samples_per_question higher", _SLOWER),
    ),
    "diversity": Kind(
        _diversity, "fewer questions, or fewer ways, are in reach than at the start",
        (_DISTINCT_ONLY, _NEGATIVES, "convert --average", "replay"),
    ),
    "forgetting": Kind(
        _forgetting, "what the start solved is lost, more than is gained",
        ("replay", "objective.kl_coefficient", _SLOWER),
    ),
    "pass_rate": Kind(
        _pass_rate, "mostly a learning rate that is too high; questions that become harder, too",
        (_SLOWER, "optimizer.warmup_steps higher", "objective.kl_coefficient"),
    ),
    "entropy": Kind(
        _entropy, "the policy dissolves into noise",
        (_SLOWER, "objective.kl_coefficient", "method=w_reinforce or rloo in place of nsr"),
    ),
    "gradient_norm": Kind(
        _gradient_norm, "single batches move the policy",
        (_SLOWER, "optimizer.clip_norm lower", "rollout.questions_per_step higher"),
    ),
    "truncation": Kind(
        _truncation, "outputs do not end any more",
        ("data.max_completion_tokens higher", _SLOWER, "objective.kl_coefficient"),
    ),
    "overconfidence": Kind(
        _overconfidence, "one answer is given ever more often, and not because it is right",
        (_NEGATIVES, _DISTINCT_ONLY, "convert --average", "alarms.action=best"),
    ),
    "mismatch": Kind(
        _mismatch, "the sampler's policy is not the one that is trained",
        ("model.compute_dtype=float32", "objective.importance_cap", "update.epochs lower"),
    ),
    "no_improvement": Kind(
        _no_improvement, "training on brings nothing by this measure",
        ("alarms.action=best", _SLOWER, "steps lower"),
    ),
}  # fmt: skip
"""In the order in which they are shown."""
