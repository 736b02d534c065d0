"""Alarms: signs that a run is going wrong, and what follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rft_jax.config.fields import at_least, require

SIGNS = (
    "collapse", "diversity", "forgetting", "pass_rate", "entropy", "gradient_norm", "truncation",
    "overconfidence", "mismatch",
)  # fmt: skip
"""Alarms with a threshold, each named as its field."""


@dataclass(frozen=True)
class AlarmsConfig:
    """Signs that a run is going wrong, from where on, and what follows (docs/alarms.md). A
    threshold of 0 switches that alarm off."""

    action: Literal["off", "warn", "stop", "best"] = "warn"
    """`warn` in the log; `stop`: the run ends with the step whose alarm it is, is tested and counts
    as finished; `best`: likewise, with the best checkpoint that checkpoint.keep_best kept as its
    final one; `off`: no alarms."""
    window: int = 10
    """Steps that what is measured in training is averaged over; the first such window is the
    start's value."""
    evaluations: int = 2
    """Evaluations in a row that must show what is measured in validation."""
    patience: int = 0
    """Alarm no_improvement: this many evaluations in a row without a new best of
    checkpoint.measure; 0 for never."""
    collapse: float = 0.6
    """Share of the start's value below which both the spread of rewards within questions (for its
    pass rate) and the entropy fall."""
    diversity: float = 3.0
    """Standard errors (paired, over questions) by which pass@G or the distinct correct outputs are
    below the start's."""
    forgetting: float = 0.25
    """Share of the questions that the start solved which are not solved any more, where more are
    lost than gained."""
    pass_rate: float = 0.2
    """Share of its own best by which the pass rate is below that, beyond noise."""
    entropy: float = 1.5
    """Entropy over the start's, while the pass rate is below its best beyond noise, or truncation
    rises."""
    gradient_norm: float = 5.0
    """Gradient norm over the median of the steps before, twice within a window."""
    truncation: float = 0.1
    """By how much the share of outputs that are cut at the limit is above the start's."""
    overconfidence: float = 0.05
    """By how much the calibration error is above the start's, and the share of the most frequent
    answer too, while accuracy is not."""
    mismatch: float = 0.03
    """Mean difference of the sampler's and the trainer's log-probs, where it is also twice the
    start's."""

    def __post_init__(self) -> None:
        at_least(1, self, "evaluations")
        at_least(2, self, "window")
        at_least(0, self, "patience", *SIGNS)
        for name in ("collapse", "forgetting", "pass_rate", "truncation", "overconfidence"):
            value = getattr(self, name)
            require(value < 1, f"alarms.{name} is {value}: it is a share, and must be below 1.")
        require(
            self.entropy == 0 or self.entropy > 1,
            f"alarms.entropy is {self.entropy}: it is over the start's, and must be above 1, or 0 "
            "for no such alarm.",
        )
        require(
            self.patience == 0 or self.action != "off",
            f"alarms.patience is {self.patience}, which does nothing under alarms.action=off: set "
            "it to 0, or have it warn, stop or best.",
        )
        require(
            self.action == "off" or any(getattr(self, name) for name in ("patience", *SIGNS)),
            f"alarms.action is {self.action!r}, and every alarm is switched off: set it to off, or "
            "a threshold above 0.",
        )
