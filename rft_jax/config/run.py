"""Every setting of a run, typed and frozen. Loads no jax.

A run is one `Config`; an experiment is an ordered dict of named runs (see experiments/). Sections
that a method does not use are None and refused when given: a setting either acts or is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from rft_jax.config.alarms import AlarmsConfig
from rft_jax.config.data import DataConfig, TokenizerConfig
from rft_jax.config.fields import MAY_CHANGE, MOST, check_floats, require
from rft_jax.config.machine import CheckpointConfig, MeshConfig
from rft_jax.config.method import Denominator, Method, Ratio, resolve
from rft_jax.config.model import ModelConfig
from rft_jax.config.sampling import PoolConfig, RefillConfig, RolloutConfig, SelectionConfig
from rft_jax.config.update import CriticConfig, ObjectiveConfig, OptimizerConfig, UpdateConfig
from rft_jax.config.verification import EvaluationConfig, VerificationConfig


@dataclass(frozen=True)
class Config:
    """One run: a method (source of samples x gradient coefficient), its data, policy and update."""

    method: str | Method
    """sft: demonstrations; rft: accepted outputs of the frozen start; online_rft: accepted
    outputs of the current policy (DeepSeekMath, section 5.2); my_module:my_method: a Method of
    your own (docs/methods.md)."""
    data: DataConfig
    tokenizer: TokenizerConfig
    steps: int
    """Updates of the parameters. With a constant schedule a run may be given more, or fewer than
    before but no fewer than it has made."""
    seed: int = 0
    """Fixes initialisation, order of questions and every sampled token."""
    init_from: str = "random"
    """`random`, `run:NAME` (the final checkpoint of an earlier run of this experiment),
    `workdir:PATH` (that of the folder of a finished run elsewhere), either with `@STEP` or `@best`
    for a checkpoint that is kept of a run finished or not, or `hf:PATH_OR_REPO` (a published model
    in Hugging Face's format: a folder, or ORG/NAME[@REVISION] of the hub)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig, metadata=MAY_CHANGE)
    rollout: RolloutConfig | None = None
    pool: PoolConfig | None = None
    selection: SelectionConfig | None = None
    refill: RefillConfig | None = None
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    critic: CriticConfig | None = None
    verification: VerificationConfig = field(default_factory=VerificationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig, metadata=MAY_CHANGE)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata=MAY_CHANGE)
    alarms: AlarmsConfig = field(default_factory=AlarmsConfig, metadata=MAY_CHANGE)

    @property
    def row(self) -> Method:
        """The method as a row: source, coefficient, what is trained on."""
        return resolve(self.method)

    @property
    def denominator(self) -> Denominator:
        """What the objective is divided by: the row's, unless objective.denominator is given."""
        return self.objective.denominator or self.row.denominator

    @property
    def ratio(self) -> Ratio | None:
        """How pi_theta / pi_old enters the update; None where the two are one policy, or the row
        has no ratio."""
        row, objective = self.row, self.objective
        if row.ratio is None or not self._off_policy:
            return None
        given: dict[str, Any] = {
            "low": objective.clip_low, "high": objective.clip_high, "dual": objective.dual_clip
        }  # fmt: skip
        return replace(row.ratio, **{k: v for k, v in given.items() if v is not None})

    @property
    def has_reference(self) -> bool:
        """Whether the run keeps pi_ref."""
        pools = self.pool is not None and self.pool.sampled_from == "start"
        objective = self.objective
        return pools or self.row.log_ratios or objective.kl_coefficient + objective.kl_outputs > 0

    @property
    def num_pools(self) -> int:
        """How often a pool is sampled or read."""
        every = self.pool.every_steps if self.pool is not None else 0
        return -(-self.steps // every) if every else int(self.pool is not None)

    @property
    def scores_reference(self) -> bool:
        """Whether sampled outputs get log pi_ref before they are selected."""
        in_reward = self.objective.kl_coefficient > 0 and self.objective.kl_in == "reward"
        return in_reward or self.row.log_ratios

    @property
    def _off_policy(self) -> bool:
        """Whether some update is of another policy than the one that sampled its outputs."""
        return self.row.source == "pool" or self.update.per_rollout > 1

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps is {self.steps}: a run makes at least one update.")
        require(self.steps <= MOST, f"steps is {self.steps}: it must be at most {MOST}.")
        require(
            0 <= self.seed < 2**31, f"seed is {self.seed}: it must lie between 0 and 2147483647."
        )
        kind, _, target = self.init_from.partition(":")
        require(
            self.init_from == "random" or (kind in ("run", "workdir", "hf") and bool(target)),
            f"init_from is {self.init_from!r}: it must be random, run:NAME, workdir:PATH or "
            "hf:PATH_OR_REPO.",
        )
        require(
            self.init_from != "random" or not self.model.lora_rank,
            f"model.lora_rank is {self.model.lora_rank} and init_from is random: adapters need a "
            "model to adapt; name it as run:NAME, workdir:PATH or hf:PATH_OR_REPO.",
        )
        for item in fields(self):
            section = getattr(self, item.name)
            if is_dataclass(section) and item.name != "method":
                check_floats(item.name, section)
        self._check_sections()
        longest = self.data.max_prompt_tokens + self.data.max_completion_tokens
        require(
            self.update.row_length >= longest,
            f"update.row_length is {self.update.row_length}: a row must hold the longest prompt "
            f"and output, data.max_prompt_tokens + data.max_completion_tokens = {longest}.",
        )
        require(
            self.optimizer.warmup_steps < self.steps or self.optimizer.warmup_steps == 0,
            f"optimizer.warmup_steps is {self.optimizer.warmup_steps}: it must be below steps, "
            f"{self.steps}.",
        )

    def _check_sections(self) -> None:
        require(
            self.verification.verifier != "random" or bool(self.evaluation.verifier),
            "verification.verifier is 'random': name the rule that evaluates as "
            "evaluation.verifier.",
        )
        row = self.row
        samples = row.source != "demonstrations"
        from_log = self.pool is not None and bool(self.pool.from_rollouts)
        needs = {
            "rollout": samples and not from_log,
            "pool": row.source == "pool",
            "selection": samples,
            "critic": row.values,
        }
        for name, needed in needs.items():
            given = getattr(self, name) is not None
            why = " from a rollout log" if name == "rollout" and from_log else ""
            require(given or not needed, f"{name} is missing: method {row.name} needs it.")
            require(
                needed or not given,
                f"{name} does nothing under method {row.name}{why}: remove it.",
            )
        online = row.source == "policy"
        require(
            online == (self.update.sequences_per_step == 0),
            f"update.sequences_per_step is {self.update.sequences_per_step}: it must be 0 for "
            "a method whose source is the policy (the rollout decides) and at least 1 for others.",
        )
        self._check_objective()
        self._check_reference()
        require(
            online or self.objective.kl_coefficient == 0,
            f"objective.kl_coefficient acts on the policy's own samples: it must be 0 under method "
            f"{row.name}.",
        )
        require(
            not samples or self.init_from != "random",
            f"init_from is random: method {row.name} starts from a supervised model; name it "
            "as run:NAME, workdir:PATH or hf:PATH_OR_REPO.",
        )
        if self.pool is not None:
            require(
                self.pool.every_steps < self.steps,
                f"pool.every_steps is {self.pool.every_steps}: another pool is sampled before the "
                f"last of {self.steps} steps, or none: lower it, or set it to 0.",
            )
        require(
            online or self.objective.kl_outputs == 0,
            f"objective.kl_outputs is {self.objective.kl_outputs}: it counts outputs of the "
            f"policy's own rollouts: it must be 0 under method {row.name}.",
        )
        if self.refill is not None:
            self._check_refill(self.refill)
        if self.checkpoint.keep_best:
            self._check_best()
        self._check_measure()

    def _check_objective(self) -> None:
        row, objective, update = self.row, self.objective, self.update
        ratio = self.ratio  # which refuses bounds that are none
        online = row.source == "policy"
        for name in ("minibatches", "epochs"):
            value = getattr(update, name)
            require(
                online or value == 1,
                f"update.{name} is {value}: it splits or repeats a rollout of the policy, and "
                f"method {row.name} has none: set it to 1.",
            )
        if self.rollout is not None and online:
            group, fill = self.rollout.samples_per_question, self.refill
            asked = self.rollout.questions_per_step
            outputs = (fill.accepted or fill.mixed_groups * group) if fill else asked * group
            most, parts = (
                (outputs // group, "questions") if row.log_ratios else (outputs, "outputs")
            )
            require(
                update.minibatches <= most,
                f"update.minibatches is {update.minibatches}: a step trains on at most {most} "
                f"{parts}, so that it must be {most} or less.",
            )
        for name in ("clip_low", "clip_high", "dual_clip"):
            value = getattr(objective, name)
            require(
                value is None or row.ratio is not None,
                f"objective.{name} is {value}: method {row.name} has no importance ratio: remove "
                "it.",
            )
            require(
                value is None or self._off_policy,
                f"objective.{name} is {value} and does nothing, as each rollout is for one update, "
                "of the policy that sampled it: remove it, or raise update.minibatches or "
                "update.epochs.",
            )
        require(
            not objective.dual_clip or row.trains_on == "decided",
            f"objective.dual_clip is {objective.dual_clip}: it bounds the ratio of negative "
            f"coefficients, and method {row.name} trains on accepted outputs only: remove it.",
        )
        require(
            update.per_rollout <= self.steps,
            f"update.minibatches x update.epochs is {update.per_rollout}: the first rollout is for "
            f"more updates than steps, {self.steps}: lower them, or raise steps.",
        )
        require(
            objective.importance_cap == 0 or (online and ratio is None),
            f"objective.importance_cap is {objective.importance_cap}: it acts on rollouts of the "
            f"policy whose method has no importance ratio of its own (method {row.name}): set it "
            "to 0.",
        )
        require(
            row.trains_on == "accepted" or not self.denominator.startswith("accepted"),
            f"objective.denominator is {self.denominator!r}: method {row.name} trains on incorrect "
            "outputs too; choose sampled, tokens or constant.",
        )
        require(
            objective.constant_length == 0 or self.denominator == "constant",
            f"objective.constant_length is {objective.constant_length} and does nothing under the "
            f"denominator {self.denominator!r}: set it to 0.",
        )
        from_log = self.pool is not None and bool(self.pool.from_rollouts)
        require(
            not row.steps or from_log or ":" in self.verification.verifier,
            f"verification.verifier is {self.verification.verifier!r}, which gives no rewards of "
            f"steps, and method {row.name} reads them: name a checker of yours (module:function) "
            "that says them (docs/verification.md), or choose a method without.",
        )
        outputs = self.rollout.samples_per_question if self.rollout else 2
        require(
            not row.group or outputs > 1,
            f"rollout.samples_per_question is {outputs}: method {row.name} compares the outputs of "
            "a question; sample at least 2.",
        )
        stale = self.refill.max_staleness if self.refill else 0
        require(
            not (row.steps or row.values) or stale == 0,
            f"refill.max_staleness is {stale}: outputs are carried over with one coefficient each, "
            f"and those of method {row.name} differ from token to token; set it to 0.",
        )
        require(
            update.per_rollout == 1 or stale == 0,
            f"refill.max_staleness is {stale} and a rollout is for {update.per_rollout} updates "
            "(update.minibatches x update.epochs): outputs that are carried over wait longer than "
            "they may, and have no log-probs of their policy; set it to 0.",
        )

    def _check_reference(self) -> None:
        row, objective, every = self.row, self.objective, self.objective.reference_every
        require(
            objective.kl_in == "loss" or row.rewards,
            f"objective.kl_in is 'reward': method {row.name} reads no rewards; choose loss.",
        )
        require(
            objective.kl_in == "loss" or row.trains_on == "decided",
            f"objective.kl_in is 'reward': every decided output then has a reward, and method "
            f"{row.name} trains on accepted ones only; choose loss.",
        )
        require(
            objective.kl_in == "loss" or row.values or not row.steps,
            f"objective.kl_in is 'reward': method {row.name} reads the rewards of steps, which no "
            "KL is taken from; choose loss.",
        )
        require(
            not every or (self.has_reference and row.source == "policy"),
            f"objective.reference_every is {every}: method {row.name} has no pi_ref to renew "
            "without objective.kl_coefficient, or does not sample from the policy: set it to 0.",
        )
        require(
            every % self.update.per_rollout == 0,
            f"objective.reference_every is {every}: pi_ref is renewed between rollouts, so it must "
            f"be a multiple of update.minibatches x update.epochs, {self.update.per_rollout}.",
        )
        require(
            every < self.steps,
            f"objective.reference_every is {every}: pi_ref is renewed before the last of "
            f"{self.steps} steps, or not at all: lower it, or set it to 0.",
        )
        if not row.log_ratios:
            return
        for name in ("kl_coefficient", "importance_cap"):
            require(
                not getattr(objective, name),
                f"objective.{name} is {getattr(objective, name)}: the coefficient of method "
                f"{row.name} holds pi_theta / pi_ref itself: set it to 0.",
            )
        require(
            self.refill is None or bool(self.refill.mixed_groups),
            f"refill.accepted cuts groups, and method {row.name} compares the outputs of one: "
            "fill up with refill.mixed_groups.",
        )

    def _check_best(self) -> None:
        best, saved = self.checkpoint.keep_best, self.checkpoint.every_steps
        evaluated = self.evaluation.every_steps
        require(
            0 < evaluated <= self.steps,
            f"checkpoint.keep_best is {best} and no step is evaluated, as evaluation.every_steps "
            f"is {evaluated} and steps is {self.steps}: evaluate, or remove checkpoint.keep_best.",
        )
        require(
            evaluated % saved == 0,
            f"checkpoint.keep_best is {best} and not every step that is evaluated is saved: "
            f"evaluation.every_steps, {evaluated}, must be a multiple of checkpoint.every_steps, "
            f"{saved}.",
        )

    def _check_measure(self) -> None:
        measure, patience, group = (
            self.checkpoint.measure, self.alarms.patience, self.evaluation.samples_per_question
        )  # fmt: skip
        require(
            self.alarms.action != "best" or self.checkpoint.keep_best > 0,
            "alarms.action is 'best', and no best checkpoint is kept: set checkpoint.keep_best to "
            "1 or more.",
        )
        require(
            patience == 0 or 0 < self.evaluation.every_steps <= self.steps,
            f"alarms.patience is {patience} and no step is evaluated, as evaluation.every_steps is "
            f"{self.evaluation.every_steps} and steps is {self.steps}: evaluate, or set it to 0.",
        )
        require(
            measure == CheckpointConfig.measure or self.checkpoint.keep_best + patience > 0,
            f"checkpoint.measure is {measure!r} and nothing is judged by it: set "
            "checkpoint.keep_best or alarms.patience, or remove it.",
        )
        for k in map(int, re.findall(r"pass_at/([0-9]+)", measure)):
            require(
                0 < k <= group and (k == group or k.bit_count() == 1),
                f"checkpoint.measure is {measure!r}: evaluation.samples_per_question is {group}, "
                f"and pass@{k} is measured for K = 1, 2, 4, ... and that number.",
            )

    def _check_refill(self, refill: RefillConfig) -> None:
        require(
            self.row.source == "policy",
            f"refill does nothing under method {self.row.name}: remove it.",
        )
        assert self.rollout is not None
        assert self.selection is not None
        require(
            self.objective.kl_loss == 0 or bool(refill.mixed_groups),
            f"objective.kl_coefficient is {self.objective.kl_coefficient}: the KL is over every "
            "output of the policy, and refill keeps accepted ones: set it to 0 or remove refill.",
        )
        group = self.rollout.samples_per_question
        one_round = self.rollout.questions_per_step * group
        rounds = max(refill.max_sampled // one_round, 1)
        require(
            refill.max_sampled == rounds * one_round,
            f"refill.max_sampled is {refill.max_sampled}: it must be a multiple of one round, "
            f"rollout.questions_per_step x rollout.samples_per_question = {one_round}, such as "
            f"{rounds * one_round}.",
        )
        require(
            refill.mixed_groups <= rounds * self.rollout.questions_per_step,
            f"refill.mixed_groups is {refill.mixed_groups}: refill.max_sampled = "
            f"{refill.max_sampled} outputs are of {rounds * self.rollout.questions_per_step} "
            "questions: lower it or raise refill.max_sampled.",
        )
        require(
            not refill.mixed_groups or group > 1,
            f"refill.mixed_groups is {refill.mixed_groups} and rollout.samples_per_question is "
            f"{group}: a mixed group has at least 2 outputs.",
        )
        kept_of_group = min(self.selection.max_per_question or group, group)
        most = rounds * self.rollout.questions_per_step * kept_of_group
        require(
            refill.accepted <= most,
            f"refill.accepted is {refill.accepted}: of refill.max_sampled = {refill.max_sampled} "
            f"outputs, {kept_of_group} of each question, at most {most} are kept: lower it or "
            "raise refill.max_sampled.",
        )


Experiment = Mapping[str, Config]
"""Named runs in the order they are carried out; what `experiment()` returns."""
