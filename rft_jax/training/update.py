"""The update: (state, batch) -> (state, metrics), a pure function, jitted once; and the host's side
of it, which puts a batch on the devices and reads the metrics.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from rft_jax.config import Config, ModelConfig
from rft_jax.config.method import Ratio
from rft_jax.distributed.mesh import batch_sharding, replicated
from rft_jax.distributed.shards import put
from rft_jax.errors import UserError
from rft_jax.models.adapters import join
from rft_jax.training.control import Control
from rft_jax.training.log_probs import log_probs_and_entropies, target_log_probs
from rft_jax.training.objective import KL, importance, objective, surrogate
from rft_jax.training.optimizer import schedule
from rft_jax.training.scoring import microbatch, update_temperature
from rft_jax.types import PackedBatch, Params, TrainState


class UpdateMetrics(NamedTuple):
    """Facts of one update, as scalars.

    value: J without its KL term; kl: the k3 estimate; gradient_norm: before clipping;
    finite: whether all parameters and moments are, after the update;
    mismatch_max, mismatch_mean: |trainer's - sampler's log-prob| over trained tokens, in nats
    (meaningless where the sampler's are unknown); ratio, ratio_max: pi_theta / pi_old over trained
    tokens, the mean and the largest; clipped: the share of them that a bound acts on; entropy: the
    mean over trained tokens, in nats, NaN without any; replay: what the replayed outputs add to the
    objective, whose tokens count for nothing else.
    """

    value: Float[Array, ""]
    kl: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    finite: Bool[Array, ""]
    mismatch_max: Float[Array, ""]
    mismatch_mean: Float[Array, ""]
    ratio: Float[Array, ""]
    ratio_max: Float[Array, ""]
    clipped: Float[Array, ""]
    entropy: Float[Array, ""] | None = None
    replay: Float[Array, ""] | None = None


class Terms(NamedTuple):
    """What the loss is made of beside weights and log-probs, fixed for a run; all off by default.

    ratio: of the method, where outputs are of an older policy; entropy: whether there is an entropy
    bonus; replay: whether outputs are replayed, those without log-probs of a sampler (NaN); the
    others: see ObjectiveConfig.
    """

    kl_coefficient: float = 0.0
    kl_estimator: str = "k3"
    ratio: Ratio | None = None
    importance_cap: float = 0.0
    entropy: bool = False
    replay: bool = False

    @classmethod
    def of(cls, config: Config) -> Terms:
        """Those of a run."""
        objective = config.objective
        return cls(
            objective.kl_loss, objective.kl_estimator, config.ratio, objective.importance_cap,
            objective.entropy_bonus, config.replay is not None,
        )  # fmt: skip


class Totals(NamedTuple):
    """Sums over micro-batches. mismatch: |trainer's - sampler's log-prob|; ratio: pi_theta /
    pi_old; clipped: tokens that a bound acts on; tokens: that are trained on; entropy: over these;
    replay: of the replayed outputs, weight * log-prob."""

    value: Float[Array, ""]
    kl: Float[Array, ""]
    mismatch: Float[Array, ""]
    ratio: Float[Array, ""]
    clipped: Float[Array, ""]
    tokens: Float[Array, ""]
    entropy: Float[Array, ""] | None = None
    replay: Float[Array, ""] | None = None


class Maxima(NamedTuple):
    """The largest over micro-batches."""

    mismatch: Float[Array, ""]
    ratio: Float[Array, ""]


class Gradients(NamedTuple):
    """The gradient of the loss, and the facts that come with it."""

    gradients: Params
    totals: Totals
    maxima: Maxima


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def gradients(
    params: Params,
    reference: Params | None,
    batch: PackedBatch,
    temperature: Float[Array, ""],
    frozen: Params | None = None,
    bonus: Float[Array, ""] | None = None,
    *,
    config: ModelConfig,
    terms: Terms,
    chunk: int,
    mesh: Mesh | None = None,
) -> Gradients:
    """Gradient of the loss, -J + kl_coefficient * KL - bonus * entropy - replay, over the
    micro-batches in use.

    bonus: what each trained token's entropy is multiplied by, where terms.entropy;
    frozen: the rest of the policy where `params` are its adapters (rft_jax/models/adapters.py);
    mesh: what rows and parameters are spread over. On one of data only each device adds up the
    gradient of its own rows, and they meet once, after the last micro-batch.
    """
    of_rows = functools.partial(_gradients, config=config, terms=terms)
    arguments = (params, reference, batch, temperature, frozen or {}, bonus)
    if mesh is None or mesh.size == 1:
        return of_rows(*arguments, chunk=chunk)
    if mesh.shape["data"] < mesh.size:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return of_rows(*arguments, chunk=chunk)

    def of_device(*arguments: Any) -> Gradients:
        gradients, totals, maxima = of_rows(*arguments, chunk=max(1, chunk // mesh.size))
        gradients, totals = jax.lax.psum((gradients, totals), "data")
        return Gradients(gradients, totals, jax.lax.pmax(maxima, "data"))

    whole, rows = PartitionSpec(), PartitionSpec(None, "data")
    of_batch = jax.tree.map(lambda leaf: rows if leaf.ndim else whole, batch)
    of_mesh: Any = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(whole, whole, of_batch, whole, whole, whole),
        out_specs=whole,
        check_vma=False,
    )
    found: Gradients = of_mesh(*arguments)
    return found


def _gradients(
    params: Params,
    reference: Params | None,
    batch: PackedBatch,
    temperature: Float[Array, ""],
    frozen: Params,
    bonus: Float[Array, ""] | None,
    *,
    config: ModelConfig,
    terms: Terms,
    chunk: int,
) -> Gradients:
    """The same on one part of the rows.

    The number of micro-batches is data, not shape: rejected outputs are not computed on and
    nothing is compiled again when their number changes.
    """

    def log_probs_of(params: Params, *rows: Array) -> Array:
        return target_log_probs(join(frozen, params), *rows, config=config, chunk=chunk)

    def loss(params: Params, micro: PackedBatch) -> tuple[Array, tuple[Totals, Maxima]]:
        rows = (micro.inputs, micro.targets, micro.positions, micro.segments, temperature)
        entropies = entropy = replay = None
        if terms.entropy:
            log_probs, entropies = log_probs_and_entropies(
                join(frozen, params), *rows, config=config, chunk=chunk
            )
        else:
            log_probs = log_probs_of(params, *rows)
        weights, sampler_log_probs = micro.weights, micro.sampler_log_probs
        zero = jnp.zeros((), log_probs.dtype)
        kl = ratio = ratio_max = clipped = zero
        if terms.replay:  # of no policy that has a ratio, nor of samples that a KL is over
            replayed = jnp.isnan(sampler_log_probs)
            replay = objective(log_probs, jnp.where(replayed, weights, 0.0))
            weights, sampler_log_probs = (
                jnp.where(replayed, 0.0, numbers) for numbers in (weights, sampler_log_probs)
            )
        # Elsewhere policies may differ without bound, and 0 times infinity is no 0.
        trained = (weights != 0) | (micro.kl_weights != 0)
        if terms.importance_cap:
            known = jnp.where(trained, sampler_log_probs, log_probs)
            weights = weights * importance(log_probs, known, terms.importance_cap)
        if terms.ratio is None:
            value = objective(log_probs, weights)
        else:
            value, ratios, bound = surrogate(
                log_probs, sampler_log_probs, weights, micro.segments, terms.ratio
            )
            counted = jnp.where(trained, ratios, 0.0)
            ratio, ratio_max, clipped = jnp.sum(counted), jnp.max(counted), jnp.sum(bound)
        if terms.kl_coefficient:
            of_reference = log_probs_of(reference, *rows)
            of_reference = jnp.where(micro.kl_weights != 0, of_reference, log_probs)
            estimator = KL[terms.kl_estimator]
            kl = jnp.sum(micro.kl_weights * estimator(log_probs, of_reference))
        gap = jnp.where(trained, jnp.abs(log_probs - sampler_log_probs), 0.0)
        if entropies is not None:
            entropy = jnp.sum(jnp.where(trained, entropies, 0.0))
        totals = Totals(
            value, kl, jnp.sum(gap), ratio, clipped.astype(gap.dtype),
            jnp.sum(trained.astype(gap.dtype)), entropy, replay,
        )  # fmt: skip
        lost = -value + terms.kl_coefficient * kl
        if entropy is not None and bonus is not None:
            lost -= bonus * entropy
        if replay is not None:
            lost -= replay
        return lost, (totals, Maxima(jnp.max(gap), ratio_max))

    def add(index: Array, sums: Gradients) -> Gradients:
        micro = microbatch(batch, index)
        (_, (totals, maxima)), grads = jax.value_and_grad(loss, has_aux=True)(params, micro)
        return Gradients(
            jax.tree.map(jnp.add, sums.gradients, grads),
            jax.tree.map(jnp.add, sums.totals, totals),
            jax.tree.map(jnp.maximum, sums.maxima, maxima),
        )

    zero = jnp.zeros((), jax.tree.leaves(params)[0].dtype)
    more = {name: zero for name in ("entropy", "replay") if getattr(terms, name)}
    start = Gradients(
        jax.tree.map(jnp.zeros_like, params),
        Totals(*[zero] * (len(Totals._fields) - 2), **more),
        Maxima(*[zero] * len(Maxima._fields)),
    )
    return jax.lax.fori_loop(0, batch.num_microbatches, add, start)


@functools.partial(
    jax.jit,
    static_argnames=("config", "optimizer", "terms", "chunk", "mesh"),
    donate_argnames=("state",),
)
def update(
    state: TrainState,
    reference: Params | None,
    batch: PackedBatch,
    temperature: Float[Array, ""],
    frozen: Params | None = None,
    bonus: Float[Array, ""] | None = None,
    *,
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    terms: Terms,
    chunk: int,
    mesh: Mesh | None = None,
) -> tuple[TrainState, UpdateMetrics]:
    """One ascent step on the objective of `batch` (rft_jax/training/objective.py).

    reference: parameters of pi_ref, None unless terms.kl_coefficient is positive; temperature: the
    one the outputs were sampled at (1 for demonstrations and for the pool of RFT); frozen, bonus,
    mesh: see `gradients`.
    """
    sums = gradients(
        state.params,
        reference,
        batch,
        temperature,
        frozen,
        bonus,
        config=config,
        terms=terms,
        chunk=chunk,
        mesh=mesh,
    )
    totals, maxima, tokens = sums.totals, sums.maxima, jnp.maximum(sums.totals.tokens, 1.0)
    changes, optimizer_state = optimizer.update(sums.gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, changes)
    leaves = [leaf for leaf in jax.tree.leaves((params, optimizer_state)) if leaf.ndim]
    return TrainState(state.step + 1, params, optimizer_state), UpdateMetrics(
        value=totals.value,
        kl=totals.kl,
        gradient_norm=optax.tree.norm(sums.gradients),
        finite=jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all(),
        mismatch_max=maxima.mismatch,
        mismatch_mean=totals.mismatch / tokens,
        ratio=totals.ratio / tokens,
        ratio_max=maxima.ratio,
        clipped=totals.clipped / tokens,
        entropy=None if totals.entropy is None else totals.entropy / totals.tokens,
        replay=totals.replay,
    )


@dataclass(frozen=True)
class Updater:
    """Makes the updates of a run; holds what stays the same from one to the next.

    vocab_size: rows of the embedding; frozen: parameters under adapters; at: told where the work is
    (distributed/watchdog.py).
    """

    config: Config
    mesh: Mesh
    optimizer: optax.GradientTransformation
    vocab_size: int
    frozen: Params
    at: Callable[[str], None]

    def __call__(
        self,
        state: TrainState,
        batch: PackedBatch,
        *,
        reference: Params | None,
        control: Control,
        step: int,
        updates: int,
    ) -> tuple[TrainState, dict[str, float]]:
        """One update, and its metrics.

        Args:
            state: its arrays are taken.
            batch: numpy.
            reference: parameters of pi_ref, which a KL in the loss needs.
            control: of the rollout that the update is on.
            step: of the run, before this one.
            updates: of the run, before this one.

        Raises:
            UserError: the gradient is not finite, or what the update made of it.
        """
        config, mesh = self.config, self.mesh
        self.at(f"update of step {step + 1}")
        slots = int(batch.num_microbatches) * batch.segments[0].size
        filled = int((batch.segments > 0).sum())
        learning_rate = float(schedule(config.optimizer, config.steps)(np.int32(updates)))
        online = config.row.source == "policy"
        terms, coefficient = Terms.of(config), control.bonus(config)
        temperature = update_temperature(config, control.temperature)
        bonus = np.float32(coefficient / max(1, _num_trained(batch))) if terms.entropy else None
        by_rows, everywhere = batch_sharding(mesh, axis=1), replicated(mesh)
        where = jax.tree.map(lambda leaf: by_rows if leaf.ndim else everywhere, batch)
        state, metrics = update(
            state,
            reference if config.objective.kl_loss else None,
            put(batch, where),
            put(np.float32(temperature), everywhere),
            self.frozen,
            None if bonus is None else put(bonus, everywhere),
            config=config.model,
            optimizer=self.optimizer,
            terms=terms,
            chunk=max(1, config.update.logits_at_once // self.vocab_size),
            mesh=mesh,
        )
        # Who waits for the devices of another process is further than one that has not begun.
        self.at(f"result of the update of step {step + 1}")
        told = jax.device_get(metrics)._asdict()
        values = {name: float(value) for name, value in told.items() if value is not None}
        if not math.isfinite(values["gradient_norm"]):
            raise UserError(
                f"step {step + 1}: the gradient's norm is {values['gradient_norm']}; nothing of "
                "this step is saved. Lower optimizer.learning_rate "
                f"({config.optimizer.learning_rate}) and start again in another --workdir, or "
                "remove the newest checkpoints to resume from an earlier one."
            )
        if not values["finite"]:
            settings = config.optimizer
            raise UserError(
                f"step {step + 1}: a parameter or a moment of the optimizer is not finite after "
                f"the update, whose gradient has norm {values['gradient_norm']:.3g}; nothing of "
                "this step is saved. Likely causes: optimizer.learning_rate "
                f"({settings.learning_rate}) or optimizer.weight_decay ({settings.weight_decay}) "
                f"is too high, optimizer.eps ({settings.eps}) too low, or optimizer.clip_norm "
                f"({settings.clip_norm}) lets such gradients through: change them and start again "
                "in another --workdir."
            )
        found = {
            "objective/value": values["value"],
            "optimizer/gradient_norm": values["gradient_norm"],
            "optimizer/learning_rate": learning_rate,
            "update/padding_efficiency": filled / slots,
        }
        if config.objective.kl_loss:
            found["objective/kl"] = values["kl"]
        if terms.entropy:
            found["objective/entropy"] = values["entropy"]
        if config.objective.entropy_target:
            found["objective/entropy_coefficient"] = coefficient
        if config.rollout is not None and config.rollout.temperature_target:
            found["rollout/temperature"] = temperature
        if config.replay is not None:
            found["replay/log_prob"] = values["replay"] / config.replay.weight
        if online:
            for name in ("mismatch_max", "mismatch_mean"):
                found[f"policy/log_prob_{name}"] = values[name]
        if config.ratio is not None:
            for name in ("ratio", "ratio_max", "clipped"):
                found[f"update/{name}"] = values[name]
        return state, found


def _num_trained(batch: PackedBatch) -> int:
    """Tokens that an update trains on, less those that are replayed."""
    trained = (batch.weights != 0) | (batch.kl_weights != 0)
    return int(np.sum(trained & ~np.isnan(batch.sampler_log_probs)))
