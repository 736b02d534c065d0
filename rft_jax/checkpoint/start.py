"""The parameters that a run starts from, or that a checkpoint holds, on the devices of a mesh."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rft_jax.checkpoint import manager as checkpoint
from rft_jax.checkpoint.inputs import of_weights
from rft_jax.checkpoint.policy import Policy, start_of
from rft_jax.checkpoint.provenance import inputs_of, load_config
from rft_jax.config import Config, MeshConfig, ModelConfig
from rft_jax.config.model import ADAPTER_FIELDS
from rft_jax.distributed.mesh import make_mesh, param_shardings
from rft_jax.distributed.shards import abstract
from rft_jax.errors import ConfigError, ModelError, UserError
from rft_jax.hub import load as importing
from rft_jax.hub.folder import locate, raw_config
from rft_jax.hub.raw_config import check_same
from rft_jax.hub.weights import check_values, open_weights
from rft_jax.io.paths import Folder
from rft_jax.keys import Purpose, run_key
from rft_jax.models import adapters, transformer
from rft_jax.models.axes import logical_axes
from rft_jax.rollout.params import rollout_params
from rft_jax.training.state import Layout, param_shapes, shardings
from rft_jax.types import Params


class Start(NamedTuple):
    """frozen: what stays as it is, empty without adapters; trained: what updates change."""

    frozen: Params
    trained: Params


def load_start(config: Config, workdir: Folder, layout: Layout, run: Folder | None = None) -> Start:
    """The policy that a run of these settings starts from, pi_sft, laid out.

    A run with adapters continues those of the run it starts from, on what they were trained on; one
    that trains everything starts from them merged.

    Args:
        layout: of the run's arrays.
        run: its folder, which says what step of another run it starts from.

    Raises ConfigError, CheckpointError or ModelError for a start that does not fit, before
    anything is put on a device.
    """
    model = config.model
    if config.init_from == "random":
        return Start({}, _random(config, layout, adapters_only=False))
    base, trained = _load(config.init_from, model, workdir, layout.base, run)
    if not model.lora_rank:
        return Start({}, base)
    return Start(base, trained or _random(config, layout, adapters_only=True))


def to_sample_from(policy: Policy, mesh: Mesh) -> Params:
    """In the layout and type that a rollout reads, the type they are also loaded in: adapters
    beside the matrices that they act on, as they are in training.

    Raises UserError for a type that jax has not, and what load_start raises.
    """
    model = policy.model
    if jax.dtypes.canonicalize_dtype(model.compute_dtype) != model.compute_dtype:
        raise UserError(
            f"{policy.name}: the run computes in float64, and jax in float32 by default: set "
            "JAX_ENABLE_X64=1, or choose compute_dtype float32."
        )
    shapes = param_shapes(model, mesh, model.vocab_size)
    where = param_shardings(mesh, shapes, logical_axes(shapes), fsdp=False)
    cast = functools.partial(transformer.cast, dtype=model.compute_dtype)
    frozen, trained = adapters.split(abstract(jax.eval_shape(cast, shapes), where), model)
    like = frozen or trained
    base, of_run = _load(policy.init_from, model, Path(), like)
    return rollout_params(adapters.join(base, of_run), where, dtype=model.compute_dtype)


def merged(policy: Policy) -> Params:
    """In float32, adapters merged, over all devices as evenly as the width allows."""
    fsdp = math.gcd(jax.device_count(), policy.model.d_model)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=fsdp))
    plain = policy.model.without_adapters()
    like = param_shapes(plain, mesh, plain.vocab_size)
    return _load(policy.init_from, plain, Path(), like)[0]


def _load(
    init_from: str,
    model: ModelConfig,
    workdir: Folder,
    like: Params,
    run: Folder | None = None,
) -> tuple[Params, Params]:
    """(parameters, laid out as `like`; adapters on them) of a published model or a run.

    Without `model.lora_rank` a run's adapters are merged into the parameters; there are none if
    the policy never had any. run: that starts from it.
    """
    kind, _, target = init_from.partition(":")
    if kind == "hf":
        return _published(target, model, like), {}
    folder, step = start_of(init_from, workdir, run)
    theirs = load_config(folder)
    _check_same_policy(init_from, model, theirs.model)
    if theirs.model.lora_rank:
        return _with_adapters_of(folder, theirs, model, like, step)
    return _restored(folder, like, step), {}


def _with_adapters_of(
    folder: Folder, theirs: Config, model: ModelConfig, like: Params, step: int
) -> tuple[Params, Params]:
    """From a run in `folder` that trained adapters, those of `step`."""
    base = _under_adapters(theirs, folder, model, like)
    mesh, vocab_size = like["embedding"].sharding.mesh, like["embedding"].shape[0]
    _, of_adapters = adapters.split(param_shapes(theirs.model, mesh, vocab_size), theirs.model)
    trained = checkpoint.restore_params(folder / "checkpoints", of_adapters, step)
    if model.lora_rank:
        return base, trained

    def merge(base: Params, trained: Params) -> Params:
        return adapters.merge(adapters.join(base, trained), theirs.model)

    merged = jax.jit(merge, out_shardings=shardings(like), donate_argnums=0)
    return merged(base, trained), {}


def _under_adapters(theirs: Config, run: Folder, model: ModelConfig, like: Params) -> Params:
    """What the adapters of a run stand on: they continue those of the runs before it."""
    kind, _, target = theirs.init_from.partition(":")
    if kind == "hf":
        return _published(target, model, like, run)
    folder, step = start_of(theirs.init_from, run.parent, run)
    before = load_config(folder)
    if before.model.lora_rank:
        return _under_adapters(before, folder, model, like)
    return _restored(folder, like, step)


def _random(config: Config, layout: Layout, *, adapters_only: bool) -> Params:
    """New parameters, or only new adapters."""
    vocab_size = layout.base["embedding"].shape[0]

    def make(key: jax.Array) -> Params:
        params = transformer.init(key, config=config.model, vocab_size=vocab_size)
        return adapters.split(params, config.model)[1] if adapters_only else params

    key = run_key(seed=config.seed, purpose=Purpose.INIT)
    return jax.jit(make, out_shardings=shardings(layout.trained))(key)


def _restored(folder: Folder, like: Params, step: int) -> Params:
    """The parameters of a run after `step`, in the types of `like`."""
    saved = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding), like
    )
    params = checkpoint.restore_params(folder / "checkpoints", saved, step)
    return jax.tree.map(lambda leaf, wanted: leaf.astype(wanted.dtype), params, like)


def _published(target: str, model: ModelConfig, like: Params, run: Folder | None = None) -> Params:
    """The parameters of a published model, checked on the host before any is put on a device.

    run: whose adapters stand on them, and which they must be the same for.
    """
    folder = locate(target)
    plain = model.without_adapters()
    check_same(plain, raw_config(folder), str(folder / "config.json"))
    weights = open_weights(folder, plain, like["embedding"].shape[0])
    check_values(weights)
    known = (inputs_of(run) or {}) if run is not None else {}
    for name, file in of_weights(folder, known).items() if known else ():
        if name in known and known[name].sha256 != file.sha256:
            raise ModelError(
                f"{file.where}: it holds other weights than those that the adapters of {run} were "
                "trained on: restore the file, or name the revision that it was of."
            )
    return importing.load_params(weights, like)


def _check_same_policy(init_from: str, ours: ModelConfig, theirs: ModelConfig) -> None:
    """ConfigError when a run gave its parameters another meaning than this one does."""
    both = ours.lora_rank and theirs.lora_rank
    for name in ours.differences(theirs):
        if (name in ADAPTER_FIELDS and not both) or name == "vocab_size":
            continue  # rows of the embedding show in its shape
        raise ConfigError(
            f"model.{name} is {getattr(ours, name)} and init_from, {init_from}, was trained with "
            f"{getattr(theirs, name)}: use the same."
        )
