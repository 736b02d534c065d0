"""A process of a job of two: ADDRESS NUMBER FOLDER. Saves steps 2 and 4 to FOLDER, which both see,
finds 4 damaged, goes on from 2 and saves 4 again."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from rft_jax.checkpoint import integrity as checkpoint_health
from rft_jax.checkpoint import manager as checkpoint
from rft_jax.checkpoint.manager import Saved
from rft_jax.config import CheckpointConfig, MeshConfig
from rft_jax.distributed.mesh import make_mesh
from rft_jax.distributed.shards import abstract
from rft_jax.types import TrainState


def main(address: str, number: str, folder: Path) -> None:
    jax.distributed.initialize(address, 2, int(number))
    mesh = make_mesh(MeshConfig(fsdp=2))
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    everywhere = NamedSharding(mesh, PartitionSpec())
    where = TrainState(everywhere, {"matrix": split}, (everywhere,))  # type: ignore[arg-type]

    @jax.jit
    def make(step: jax.Array) -> TrainState:
        matrix = jnp.arange(32.0).reshape(8, 4) * step
        return TrainState(step, {"matrix": matrix}, (step * 10,))  # type: ignore[arg-type]

    def state(step: int) -> TrainState:
        return jax.jit(make, out_shardings=where)(jnp.int32(step))

    def expect(found: TrainState, step: int) -> None:
        matrix = found.params["matrix"]
        assert not matrix.is_fully_addressable
        for shard in matrix.addressable_shards:
            expected = (np.arange(32.0).reshape(8, 4) * step)[shard.index]
            np.testing.assert_array_equal(shard.data, expected)
        assert int(found.optimizer[0].addressable_data(0)) == 10 * step

    like = abstract(jax.eval_shape(make, jnp.int32(0)), where)
    config, first = CheckpointConfig(keep=1, keep_best=1), number == "0"
    with checkpoint.open_manager(folder, config) as manager:
        for step, accuracy in ((1, 0.1), (2, 0.5), (3, None), (4, 0.2)):
            # Only process 0 has evaluated.
            checkpoint.save(
                manager, step, Saved(state(step), {"step": step}), accuracy if first else None
            )
    if first:
        assert checkpoint_health.steps(folder) == [2, 4]
        shutil.rmtree(folder / "4/params/d")
    whole = checkpoint_health.recover(folder) if first else 0
    whole = int(multihost_utils.broadcast_one_to_all(np.int32(whole or 0)))
    with checkpoint.open_manager(folder, config) as manager:
        restored = checkpoint.restore(manager, like, whole)
        assert restored is not None
        step, saved = restored
        assert (step, saved.host) == (2, {"step": 2})
        expect(saved.state, 2)
        checkpoint.save(manager, 4, Saved(state(4), {"step": 4}))
    read = checkpoint.restore_params(folder, like.params)
    expect(TrainState(read["matrix"], read, (state(4).optimizer[0],)), 4)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
