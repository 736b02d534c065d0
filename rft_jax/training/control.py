"""What follows the policy's entropy from rollout to rollout: the weight of the entropy bonus and
the temperature of sampling.

Both see the mean over a rollout's outputs of the mean entropy over an output's tokens, in nats, of
the distribution that was sampled from; at a temperature other than 1 that is the tempered policy's.
They move between rollouts only, so that all updates on a rollout have the weight and the
temperature that belong to it.

**The weight** (objective.entropy_target, Skywork-OR1, arXiv 2505.22312): it starts at
entropy_coefficient, rises by entropy_step after a rollout of less entropy than the target, falls by
it, down to 0, after one of more; and it acts only on rollouts of no more entropy than the target.

**The temperature** (rollout.temperature_target): likewise, down to one step. It holds the entropy
of what is sampled and trained, the tempered policy (training/objective.py, deviation 5). That of
the policy at temperature 1 may fall all the same: the temperature rises, and hides it.
"""

from __future__ import annotations

from typing import NamedTuple

from rft_jax.config import Config


class Control(NamedTuple):
    """What the last rollout was sampled with, what its updates have, and its entropy.

    temperature, entropy_coefficient: None where they are the config's; entropy: in nats, None
    before the first rollout.
    """

    temperature: float | None = None
    entropy_coefficient: float | None = None
    entropy: float | None = None

    def next(self, config: Config) -> Control:
        """For the next rollout."""
        if self.entropy is None:
            return self
        rollout, objective = config.rollout, config.objective
        temperature, coefficient = self.temperature, self.entropy_coefficient
        if rollout is not None and (target := rollout.temperature_target):
            old = rollout.temperature if temperature is None else temperature
            step = rollout.temperature_step
            temperature = max(step, _moved(old, step, self.entropy, target))
        if target := objective.entropy_target:
            old = objective.entropy_coefficient if coefficient is None else coefficient
            coefficient = max(0.0, _moved(old, objective.entropy_step, self.entropy, target))
        return Control(temperature, coefficient)

    def saw(self, config: Config, entropy: float | None) -> Control:
        """With the entropy of the rollout, where something follows it."""
        rollout = config.rollout
        targets = config.objective.entropy_target, rollout.temperature_target if rollout else 0.0
        return self._replace(entropy=entropy) if any(targets) else self

    def bonus(self, config: Config) -> float:
        """The weight of the entropy bonus in updates on the last rollout."""
        objective = config.objective
        if self.entropy is not None and 0 < objective.entropy_target < self.entropy:
            return 0.0
        return (
            objective.entropy_coefficient
            if self.entropy_coefficient is None
            else self.entropy_coefficient
        )


def _moved(value: float, step: float, entropy: float, target: float) -> float:
    """Up by a step where there is too little entropy, down where there is too much."""
    return value + step * ((entropy < target) - (entropy > target))
