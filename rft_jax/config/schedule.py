"""Which questions a step asks: of which sources, and by what they were passed with before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rft_jax.config.fields import at_least, named_sources, require

_TRAIN = "train"
"""The name of data.train in metrics."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Training questions of several sources, in shares that change with the updates made."""

    sources: tuple[str, ...]
    """Sources beside data.train, which is the first; each NAME=SOURCE."""
    weights: tuple[str, ...]
    """Points `STEP: W, W, ...`, the first at 0: the weights of data.train and of the sources, in
    their order, once STEP updates are made."""
    change: Literal["step", "linear"] = "step"
    """step: the weights of a point hold until the next one; linear: shares move from one point to
    the next in a straight line."""
    repeat_every: int = 0
    """Updates after which the schedule begins again (rotation); 0 for never."""

    def __post_init__(self) -> None:
        require(
            bool(self.sources), "schedule.sources is empty: name a source beside data.train, "
            "as NAME=SOURCE.",
        )  # fmt: skip
        require(
            _TRAIN not in named_sources("schedule.sources", self.sources),
            f"schedule.sources names a source {_TRAIN}, which is data.train: choose another name.",
        )
        points, before = self.points, 0
        require(
            bool(points) and points[0][0] == 0,
            f"schedule.weights is {list(self.weights)}: the first point must be at step 0.",
        )
        for step, _ in points[1:]:
            require(
                step > before,
                f"schedule.weights has a point at step {step} after one at {before}: give points "
                "in order, each step once.",
            )
            before = step
        for name, most in zip(self.names, self.most, strict=True):
            require(
                most > 0, f"schedule.weights gives {name} weight 0 at every point: leave it out."
            )
        require(
            self.change == "step" or len(points) > 1,
            "schedule.change is 'linear' and schedule.weights has one point: give another one.",
        )
        at_least(0, self, "repeat_every")
        require(
            not self.repeat_every or self.repeat_every > self.last,
            f"schedule.repeat_every is {self.repeat_every}: it must be above the last point's step,"
            f" {self.last}.",
        )
        require(
            not self.repeat_every or len(points) > 1,
            f"schedule.repeat_every is {self.repeat_every} and schedule.weights has one point: "
            "give another one, or set it to 0.",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of all sources, data.train first."""
        return (_TRAIN, *named_sources("schedule.sources", self.sources))

    @property
    def points(self) -> list[tuple[int, tuple[float, ...]]]:
        """(step, share of each source) of every point."""
        return [self._point(text) for text in self.weights]

    @property
    def last(self) -> int:
        """Step of the last point."""
        return self.points[-1][0]

    @property
    def most(self) -> tuple[float, ...]:
        """The largest share of each source."""
        return tuple(max(of) for of in zip(*(shares for _, shares in self.points), strict=True))

    def shares(self, step: int) -> tuple[float, ...]:
        """The share of each source in the questions of the update after `step` updates."""
        step = step % self.repeat_every if self.repeat_every else step
        points = self.points
        number = sum(start <= step for start, _ in points) - 1
        (start, before), following = points[number], points[number + 1 :]
        if self.change == "step" or not following:
            return before
        end, after = following[0]
        part = (step - start) / (end - start)
        return tuple((1 - part) * a + part * b for a, b in zip(before, after, strict=True))

    def _point(self, text: str) -> tuple[int, tuple[float, ...]]:
        step, _, listed = text.partition(":")
        try:
            weights = [float(weight) for weight in listed.split(",")]
        except ValueError:
            weights = []
        count = 1 + len(self.sources)
        require(
            step.strip().isdecimal()
            and len(weights) == count
            and all(0 <= weight < math.inf for weight in weights)
            and 0 < sum(weights) < math.inf,
            f"schedule.weights holds {text!r}: `STEP: W, W, ...` is expected, {count} weights of 0 "
            "or more (data.train's and one for each of schedule.sources), not all 0.",
        )
        return int(step), tuple(weight / sum(weights) for weight in weights)


@dataclass(frozen=True)
class CurriculumConfig:
    """Questions set aside by the pass rate that they had when they were last asked, and reviewed
    from time to time."""

    retire_above: float = 1.0
    """Set a question aside whose pass rate is above this; 1 for none."""
    drop_below: float = 0.0
    """Set a question aside whose pass rate is below this; 0 for none."""
    review_share: float = 0.1
    """Share of each step's questions that are taken from those set aside, the one asked longest ago
    first."""

    def __post_init__(self) -> None:
        for name in ("retire_above", "drop_below", "review_share"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"curriculum.{name} is {value}: it must lie in [0, 1].")
        require(
            self.retire_above < 1 or self.drop_below > 0,
            "curriculum sets no question aside: lower curriculum.retire_above, raise "
            "curriculum.drop_below, or remove the section.",
        )
        require(
            self.drop_below <= self.retire_above,
            f"curriculum.drop_below is {self.drop_below}: it must be at most "
            f"curriculum.retire_above, {self.retire_above}.",
        )
        require(
            self.review_share < 1,
            "curriculum.review_share is 1: it must be below, or no question is new.",
        )

    def sets_aside(self, pass_rate: float) -> bool:
        """Whether a question of this pass rate lies outside the band."""
        return not self.drop_below <= pass_rate <= self.retire_above
