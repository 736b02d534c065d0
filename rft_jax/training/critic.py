"""The value function of PPO: V(q, o_<t), what a verdict is expected to be before a token is drawn.

A transformer of its own that starts as the policy does, with one number for each position in place
of logits. Advantages are those of GAE (arXiv 1506.02438, eq. 16), and the value function is fitted
to advantage + value, clipped around what it said before the update (arXiv 1707.06347's authors'
code). It is trained on the sequences that the policy is trained on.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from rft_jax.config import Config, ModelConfig
from rft_jax.distributed.mesh import batch_sharding, replicated
from rft_jax.distributed.shards import put
from rft_jax.errors import UserError
from rft_jax.models import transformer
from rft_jax.models.adapters import join
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.packing import TrainingSequence, pack_step, spread
from rft_jax.training.scoring import microbatch, score_sequences
from rft_jax.training.state import Layout, init_state, shardings, state_like
from rft_jax.types import Facts, PackedBatch, Params, Sample, TrainState


def token_values(
    params: Params,
    batch: PackedBatch,
    temperature: Float[Array, ""],
    *,
    config: ModelConfig,
    chunk: int,
) -> Float[Array, "R S"]:
    """V before each target of a micro-batch, float32.

    Args:
        params: `policy`, the transformer, and `value`, its head.
        batch: one micro-batch.
        temperature: of no effect here; log-probs, which are scored by the same program, have it.
        config: of the model.
        chunk: likewise.
    """
    rows = (batch.inputs, batch.positions, batch.segments)
    hidden = transformer.hidden_states(params["policy"], *rows, config=config)
    head = params["value"]
    scores = jnp.einsum("d,drs->rs", head["weight"], hidden.astype(head["weight"].dtype))
    return scores + head["bias"]


def generalized_advantages(
    rewards: Float[np.ndarray, "B T"],
    values: Float[np.ndarray, "B T"],
    lengths: np.ndarray,
    *,
    gamma: float,
    gae_lambda: float,
) -> Float[np.ndarray, "B T"]:
    """A_t = sum over k >= 0 of (gamma lambda)^k delta_(t+k), delta_t = r_t + gamma V_(t+1) - V_t
    (arXiv 1506.02438, eq. 16); V after an output's end is 0, also where it was cut.

    Args:
        rewards: of each token.
        values: V before it.
        lengths: |o| of each output; what follows its end is 0.
        gamma: discount of a token.
        gae_lambda: 1 for the return less the value, 0 for one step of temporal difference.
    """
    alive = np.arange(rewards.shape[1]) < lengths[:, None]
    values = np.where(alive, values, 0.0)
    after = np.pad(values[:, 1:], ((0, 0), (0, 1)))
    deltas = np.where(alive, rewards + gamma * after - values, 0.0)
    found, sums = np.zeros_like(deltas), np.zeros(len(deltas))
    for t in reversed(range(deltas.shape[1])):
        sums = deltas[:, t] + gamma * gae_lambda * sums
        found[:, t] = sums
    return found


def with_advantages(facts: Facts, samples: Sequence[Sample], config: Config) -> Facts:
    """Facts with the advantages of their outputs' tokens: the reward comes with the last one, or
    with the last of each step, and what a KL in the reward takes with each."""
    assert config.critic is not None
    width = int(facts.lengths.max(initial=0))
    rewards, values = np.zeros((2, len(samples), width))
    taken = 0.0
    if facts.penalties is not None:
        rewards, taken = rewards - facts.penalties, facts.penalties.sum(axis=1)
    if facts.step_rewards is None:
        rewards[np.arange(len(samples)), facts.lengths - 1] += facts.rewards + taken
    else:
        rewards += np.nan_to_num(facts.step_rewards)
    for row, one in enumerate(samples):
        values[row, : one.num_tokens] = one.values
    found = generalized_advantages(
        rewards, values, facts.lengths,
        gamma=config.critic.gamma, gae_lambda=config.critic.gae_lambda,
    )  # fmt: skip
    return facts._replace(advantages=found)


class _Sums(NamedTuple):
    """Over micro-batches. gradients: of the loss; loss; error: of the squared error before
    clipping; clipped: the share of tokens that the clip acts on."""

    gradients: Params
    loss: Float[Array, ""]
    error: Float[Array, ""]
    clipped: Float[Array, ""]


@functools.partial(
    jax.jit,
    static_argnames=("config", "optimizer", "value_clip", "mesh"),
    donate_argnames=("state",),
)
def update(
    state: TrainState,
    frozen: Params,
    batch: PackedBatch,
    before: Float[Array, "M R S"],
    returns: Float[Array, "M R S"],
    *,
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    value_clip: float,
    mesh: Mesh,
) -> tuple[TrainState, dict[str, Array]]:
    """One descent step on half the mean of the larger of (V - R)^2 and (clip(V) - R)^2.

    Args:
        state: of the value function; its arrays are taken.
        frozen: parameters under adapters.
        batch: weights are 1 over the tokens of the update at output tokens, 0 elsewhere.
        before: V when the outputs were sampled.
        returns: R, advantage + value.
        config: of the model.
        optimizer: of the value function.
        value_clip: how far V counts away from `before`; 0 for no bound.
        mesh: what rows and parameters are spread over.
    """

    def loss(params: Params, micro: PackedBatch, old: Array, target: Array) -> tuple[Array, Any]:
        policy = {"policy": join(frozen, params["policy"]), "value": params["value"]}
        found = token_values(policy, micro, jnp.float32(1.0), config=config, chunk=0)
        error = bounded = jnp.square(found - target)
        if value_clip:
            near = old + jnp.clip(found - old, -value_clip, value_clip)
            bounded = jnp.maximum(error, jnp.square(near - target))
        acts = jnp.sum(micro.weights * (bounded > error))
        value = 0.5 * jnp.sum(micro.weights * bounded)
        return value, (jnp.sum(micro.weights * error), acts)

    def add(index: Array, sums: _Sums) -> _Sums:
        old, target = (
            jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False) for leaf in (before, returns)
        )
        (value, (error, acts)), gradients = jax.value_and_grad(loss, has_aux=True)(
            state.params, microbatch(batch, index), old, target
        )
        return jax.tree.map(jnp.add, sums, _Sums(gradients, value, error, acts))

    zero = jnp.zeros((), before.dtype)
    start = _Sums(jax.tree.map(jnp.zeros_like, state.params), zero, zero, zero)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        sums = jax.lax.fori_loop(0, batch.num_microbatches, add, start)
    changes, moments = optimizer.update(sums.gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, changes)
    mean = jnp.sum(batch.weights * returns)
    variance = jnp.sum(batch.weights * jnp.square(returns - mean))
    metrics = {
        "loss": sums.loss,
        "clipped": sums.clipped,
        "returns": mean,
        "explained_variance": 1.0 - sums.error / jnp.maximum(variance, 1e-12),
        "gradient_norm": optax.tree.norm(sums.gradients),
    }
    return TrainState(state.step + 1, params, moments), metrics


@dataclass(frozen=True)
class Critic:
    """The value function of a run: how it starts, what it says of outputs, how it is updated.

    mesh: of the run; layout: of the policy; vocab_size: rows of its embedding; frozen: parameters
    under adapters.
    """

    config: Config
    mesh: Mesh
    layout: Layout
    vocab_size: int
    frozen: Params = field(default_factory=dict)

    @functools.cached_property
    def _optimizer(self) -> optax.GradientTransformation:
        assert self.config.critic is not None
        settings = replace(self.config.optimizer, learning_rate=self.config.critic.learning_rate)
        return make_optimizer(settings, self.config.steps)

    def like(self) -> TrainState:
        """Shapes, types and shardings of its state."""
        everywhere = replicated(self.mesh)
        width, float32 = self.config.model.d_model, jnp.float32
        head = {
            "weight": jax.ShapeDtypeStruct((width,), float32, sharding=everywhere),
            "bias": jax.ShapeDtypeStruct((), float32, sharding=everywhere),
        }
        params = {"policy": self.layout.trained, "value": head}
        return state_like(params, self._optimizer, self.mesh)

    def start(self, trained: Params) -> TrainState:
        """The state before the first update, whose values are 0. trained: of the policy; copied."""
        like = self.like()
        head = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like.params["value"])
        make = functools.partial(init_state, optimizer=self._optimizer)
        made = jax.jit(make, out_shardings=shardings(like))
        # Copied first: an output of a program may be its input.
        return made({"policy": jax.tree.map(jnp.copy, trained), "value": head})

    def values(self, state: TrainState, sequences: Sequence[TrainingSequence]) -> list[np.ndarray]:
        """V before each output token."""
        return score_sequences(
            {"policy": state.params["policy"], "value": state.params["value"]},
            sequences,
            self.config,
            of=token_values,
            frozen={"policy": self.frozen},
            mesh=self.mesh,
            vocab_size=self.vocab_size,
        )

    def __call__(
        self, state: TrainState, sequences: Sequence[TrainingSequence], *, step: int
    ) -> tuple[TrainState, dict[str, float]]:
        """One update on what the policy is updated on, and its metrics.

        Raises:
            UserError: its gradient is not finite.
        """
        config, settings = self.config, self.config.critic
        assert settings is not None
        tokens = sum(len(one.completion) for one in sequences)
        alike = [one._replace(weight=len(one.completion) / tokens) for one in sequences]
        batch, known = pack_step(alike, config), [one.values or ((), ()) for one in sequences]
        before, returns = (
            spread(sequences, [np.asarray(of_one[row]) for of_one in known], batch)
            for row in (0, 1)
        )
        by_rows, everywhere = batch_sharding(self.mesh, axis=1), replicated(self.mesh)
        where = jax.tree.map(lambda leaf: by_rows if leaf.ndim else everywhere, batch)
        state, metrics = update(
            state,
            self.frozen,
            put(batch, where),
            put(before, by_rows),
            put(returns, by_rows),
            config=config.model,
            optimizer=self._optimizer,
            value_clip=settings.value_clip,
            mesh=self.mesh,
        )
        found = {f"critic/{name}": float(one) for name, one in jax.device_get(metrics).items()}
        if not np.isfinite(found["critic/gradient_norm"]):
            raise UserError(
                f"step {step + 1}: the gradient of the value function is not finite; nothing of "
                f"this step is saved. Lower critic.learning_rate ({settings.learning_rate}) and "
                "start again in another --workdir."
            )
        return state, found
