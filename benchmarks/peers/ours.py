"""rft_jax: `sample` and `update`, on one device per core of a CPU, or on a GPU as it is.

On a CPU XLA runs batched products on one thread of a device, so the batch is split over as many
simulated devices as there are cores: the data axis of the mesh, as on any machine with several.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import floors
from benchmarks.protocol import Call, serve
from benchmarks.work import Task, Work
from rft_jax.config import MeshConfig, ModelConfig, OptimizerConfig, UpdateConfig
from rft_jax.distributed.mesh import batch_sharding, make_mesh, replicated
from rft_jax.models import transformer
from rft_jax.rollout import logits as sampling_logits
from rft_jax.rollout.params import rollout_params
from rft_jax.rollout.sampler import sample
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.packing import TrainingSequence, pack
from rft_jax.training.update import Terms, init_state, update
from rft_jax.types import Completions, Params, Prompts

NEVER = -1
"""An end-of-sequence id that is never drawn: outputs stop at their forced lengths."""


def device() -> str:
    """The kind of device, and how many."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def model_config(work: Work, remat: Any = "none") -> ModelConfig:
    """The model of the work."""
    return replace(floors.model(work.size, work.dtype).config, remat=remat)


def random_params(config: ModelConfig, vocab_size: int, where: Any, dtype: Any) -> Params:
    """Normal weights with deviation 0.02, as of all contenders; scales of norms 1, in float32."""
    shapes = transformer.abstract_params(config=config, vocab_size=vocab_size)

    def make(key: jax.Array) -> Params:
        def one(path: tuple[Any, ...], leaf: Any) -> jax.Array:
            if path[-1].key == "scale":
                return jnp.ones(leaf.shape, jnp.float32)
            number = sum(map(ord, jax.tree_util.keystr(path)))
            own = jax.random.fold_in(key, number)
            return 0.02 * jax.random.normal(own, leaf.shape, dtype)

        return jax.tree_util.tree_map_with_path(one, shapes)

    return jax.jit(make, out_shardings=where)(jax.random.key(0))


def leave_out_facts() -> None:
    """Have draws report zeros, so that the compiler drops log-probs and entropies."""
    original = sampling_logits.draw

    def draw(*arguments: Any) -> sampling_logits.Draw:
        new = original(*arguments)
        zeros = jnp.zeros_like
        return new._replace(log_probs=zeros(new.log_probs), entropies=zeros(new.entropies))

    sampling_logits.draw = draw  # type: ignore[assignment]


def prepare_sampling(task: Task) -> Call:
    """options: slots (0: all outputs at a time); facts (False: neither log-probs nor entropies)."""
    work, with_facts = task.work, bool(task.options.get("facts", True))
    if not with_facts:
        leave_out_facts()
    config = model_config(work)
    mesh = make_mesh(MeshConfig())
    everywhere = replicated(mesh)
    params = random_params(config, work.shape.vocab, everywhere, work.dtype)
    params = rollout_params(params, everywhere, dtype=config.compute_dtype)
    prompts = Prompts(
        jnp.asarray(work.prompt_tokens()),
        jnp.full((work.prompts,), work.prompt_len, jnp.int32),
        jnp.arange(work.prompts, dtype=jnp.int32),
    )
    lengths = work.lengths(task.job)
    prompts, limits = jax.device_put((prompts, jnp.asarray(lengths)), batch_sharding(mesh))

    def call(number: int) -> dict[str, Any]:
        scalars = (jax.random.key(work.seed), np.int32(number), np.float32(1.0))
        completions: Completions = jax.device_get(
            sample(
                params,
                prompts,
                *jax.device_put(scalars, everywhere),
                config=config,
                num_samples=work.samples,
                max_new_tokens=work.new_tokens,
                eos_ids=(NEVER,),
                num_slots=int(task.options.get("slots", 0)),
                limits=limits,
            )
        )
        if not np.array_equal(completions.lengths, lengths):
            raise RuntimeError("outputs have other lengths than were asked for.")
        if bool(np.any(completions.log_probs)) != with_facts:
            raise RuntimeError("log-probs are there or not, against what was asked for.")
        return {"tokens": int(completions.lengths.sum())}

    return call


def prepare_update(task: Task) -> Call:
    """options: microbatch (rows of one, 0 for all), remat.

    A row holds one sequence. All its tokens but the first are trained on, as the peers do.
    """
    work, options = task.work, task.options
    config = model_config(work, options.get("remat", "none"))
    mesh = make_mesh(MeshConfig())
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=1e-4, weight_decay=1e-4, clip_norm=0.0), 1_000_000
    )
    by_rows, everywhere = batch_sharding(mesh, axis=1), replicated(mesh)
    params = random_params(config, work.shape.vocab, everywhere, jnp.float32)
    # The update overwrites its state in place: the one to go on from is kept here.
    states = [jax.device_put(init_state(params, optimizer), everywhere)]
    ids = work.batch()
    rows = int(options.get("microbatch", 0)) or work.sequences
    sequences = [TrainingSequence(row[:1], row[1:], weight=1.0 / work.sequences) for row in ids]
    batch = pack(
        sequences,
        row_length=work.sequence_len,
        rows_per_microbatch=rows,
        max_microbatches=-(-work.sequences // rows),
    )
    where = jax.tree.map(lambda leaf: by_rows if leaf.ndim else everywhere, batch)
    batch = jax.device_put(batch, where)
    temperature = jax.device_put(np.float32(1.0), everywhere)

    def call(number: int) -> dict[str, Any]:
        states[0], metrics = update(
            states[0],
            None,
            batch,
            temperature,
            config=config,
            optimizer=optimizer,
            terms=Terms(),
            chunk=UpdateConfig().logits_at_once // work.shape.vocab,
            mesh=mesh,
        )
        jax.block_until_ready((states[0], metrics))
        return {"tokens": ids.size, "loss": -float(metrics.value)}

    return call


def prepare(task: Task) -> Call:
    """Set up the devices, then the job."""
    work = task.work
    count = max(n for n in range(1, task.cores + 1) if work.prompts % n == 0)
    jax.config.update("jax_num_cpu_devices", count)  # says nothing on a GPU
    return prepare_update(task) if task.job == "update" else prepare_sampling(task)


if __name__ == "__main__":
    serve(prepare, packages=("rft_jax", "jax", "jaxlib", "flax", "optax", "numpy"), device=device)
