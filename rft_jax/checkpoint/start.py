"""What a run starts from: random parameters, a published model, or a finished run."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rft_jax.checkpoint import manager as checkpoint
from rft_jax.checkpoint import policy_files
from rft_jax.checkpoint.provenance import load_config
from rft_jax.config import Config, ModelConfig
from rft_jax.config.model import ADAPTER_FIELDS
from rft_jax.distributed.collectives import is_main
from rft_jax.errors import ConfigError
from rft_jax.hub import load as importing
from rft_jax.hub.digests import check_record, written
from rft_jax.hub.folder import locate, raw_config
from rft_jax.hub.same import check_same
from rft_jax.hub.weights import check_values, open_weights
from rft_jax.io.paths import Folder, folder_of, write_atomically
from rft_jax.keys import Purpose, run_key
from rft_jax.models import adapters, transformer
from rft_jax.training.state import Layout, param_shapes, shardings
from rft_jax.types import Params

RECORD = f"{policy_files.FOLDER}/weights.json"
"""Of a run of adapters: digests of the published weights that they stand on."""


class Start(NamedTuple):
    """frozen: what stays as it is, empty without adapters; trained: what updates change."""

    frozen: Params
    trained: Params


def load_start(config: Config, workdir: Folder, layout: Layout, run: Folder | None = None) -> Start:
    """The policy that a run of these settings starts from, pi_sft, laid out.

    run: its folder, where a run of adapters keeps a record of the published weights they stand on,
    which must not change while it lasts. A run with adapters goes on with those of the run it
    starts from, on what they were trained on; one that trains everything starts from them merged.
    Raises ConfigError, CheckpointError or ModelError for a start that does not fit, before
    anything is put on a device.
    """
    model = config.model
    if config.init_from == "random":
        return Start({}, _random(config, layout, adapters_only=False))
    record = run / RECORD if run is not None and model.lora_rank else None
    base, trained = load_policy(config.init_from, model, workdir, layout.base, record)
    if not model.lora_rank:
        return Start({}, base)
    return Start(base, trained or _random(config, layout, adapters_only=True))


def load_policy(
    init_from: str,
    model: ModelConfig,
    workdir: Folder,
    like: Params,
    record: Folder | None = None,
    step: int | None = None,
) -> tuple[Params, Params]:
    """(parameters, laid out as `like`; adapters on them) of the policy that `run:NAME`,
    `workdir:PATH` or `hf:PATH_OR_REPO` names.

    Without `model.lora_rank` a run's adapters are merged into the parameters; there are none if
    the policy never had any. step: of the run's checkpoint, None for the last. Raises as load_start
    does.
    """
    kind, _, target = init_from.partition(":")
    if kind == "hf":
        return _published(target, model, like, record), {}
    folder = finished_run(init_from, workdir)
    theirs = load_config(folder)
    _check_same_policy(init_from, model, theirs.model)
    if theirs.model.lora_rank:
        return _with_adapters_of(folder, theirs, model, like, step)
    return _restored(folder, like, step), {}


def finished_run(init_from: str, workdir: Folder) -> Folder:
    """The folder of `run:NAME` or `workdir:PATH`; ConfigError when that run is not finished."""
    kind, _, target = init_from.partition(":")
    folder = workdir / target if kind == "run" else folder_of(target)
    if not (folder / "finished.json").is_file():
        name = f"run {target}" if kind == "run" else str(folder)
        raise ConfigError(
            f"init_from is {init_from}: {name} is not finished; carry it out first"
            + (" (leave out --only)." if kind == "run" else ".")
        )
    return folder


def _with_adapters_of(
    folder: Folder, theirs: Config, model: ModelConfig, like: Params, step: int | None
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
    """What the adapters of a run stand on: they went on with those of the runs before it."""
    kind, _, target = theirs.init_from.partition(":")
    if kind == "hf":
        return _published(target, model, like, run / RECORD)
    folder = finished_run(theirs.init_from, run.parent)
    before = load_config(folder)
    if before.model.lora_rank:
        return _under_adapters(before, folder, model, like)
    return _restored(folder, like)


def _random(config: Config, layout: Layout, *, adapters_only: bool) -> Params:
    """New parameters, or new adapters alone."""
    vocab_size = layout.base["embedding"].shape[0]

    def make(key: jax.Array) -> Params:
        params = transformer.init(key, config=config.model, vocab_size=vocab_size)
        return adapters.split(params, config.model)[1] if adapters_only else params

    key = run_key(seed=config.seed, purpose=Purpose.INIT)
    return jax.jit(make, out_shardings=shardings(layout.trained))(key)


def _restored(folder: Folder, like: Params, step: int | None = None) -> Params:
    """The parameters of a run after `step`, None for the last, in the types of `like`."""
    saved = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding), like
    )
    params = checkpoint.restore_params(folder / "checkpoints", saved, step)
    return jax.tree.map(lambda leaf, wanted: leaf.astype(wanted.dtype), params, like)


def _published(target: str, model: ModelConfig, like: Params, record: Folder | None) -> Params:
    """The parameters of a published model, checked on the host before any is put on a device.

    record: of the files they must be; written if it is not there yet.
    """
    folder = locate(target)
    plain = model.without_adapters()
    check_same(plain, raw_config(folder), str(folder / "config.json"))
    weights = open_weights(folder, plain, like["embedding"].shape[0])
    check_values(weights)
    if record is not None and record.is_file():
        check_record(weights, record)
    elif record is not None and is_main():
        write_atomically(record, written(weights))
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
