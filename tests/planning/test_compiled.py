"""Programs compiled for this machine: what two layers say of more, and what is in a loop."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from planned import MODEL, config

from rft_jax.config import MeshConfig
from rft_jax.planning import compiled, memory, opened, programs, targets
from rft_jax.planning.compiled import Compiled, Exchange
from rft_jax.planning.hlo import Collective
from rft_jax.planning.programs import Setting


@functools.cache
def setting(data: int, fsdp: int, tensor: int) -> Setting:
    model = replace(MODEL, num_layers=4)
    run = config(model, mesh=MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
    return programs.setting(run, targets.at_hand())


@pytest.mark.slow
def test_two_layers_tell_of_four() -> None:
    """Of decoding over data, fsdp and tensor: exchanges exactly, memory nearly."""
    of = setting(2, 2, 2)
    work = memory.rollout(of.config, of.shards)
    few = compiled.decode(of, work, 0.0, whole=False)
    whole = compiled.decode(of, work, 0.0, whole=True)
    assert few.exchanges == whole.exchanges
    assert few.gathered == whole.gathered == ()
    assert few.memory.arguments == pytest.approx(whole.memory.arguments, rel=0.02)
    assert few.memory.needed == pytest.approx(whole.memory.needed, rel=0.1)


@pytest.mark.slow
def test_the_decode_loop_sums_activations_over_tensor_devices_alone() -> None:
    of = setting(2, 2, 2)
    work = memory.rollout(of.config, of.shards)
    inside = [e for e in compiled.decode(of, work, 0.0, whole=False).exchanges if e.in_loop]
    sums = [e for e in inside if e.kind == "all-reduce" and e.group == 2]
    assert sum(e.times for e in sums) >= 2 * of.config.model.num_layers
    alone = setting(8, 1, 1)
    work = memory.rollout(alone.config, alone.shards)
    assert compiled.decode(alone, work, 0.0, whole=False).exchanges == ()


@pytest.mark.slow
def test_the_update_needs_what_the_state_needs_and_more() -> None:
    of = setting(2, 4, 1)
    made = compiled.update(of, 2, 0.0)
    state = sum(memory.held(of.config, of.shards).values())
    assert made.memory.needed > state
    assert made.scheduled is None  # this machine's compiler puts down no cycles
    kinds = {exchange.kind for exchange in made.exchanges if exchange.in_loop}
    assert "all-gather" in kinds


def test_a_gathered_weight_is_recognised_by_its_shape() -> None:
    """Whole or a device's share of it, in whichever order; sums of activations are none."""
    mesh = Mesh(np.array(jax.devices()), ("tensor",))
    split = NamedSharding(mesh, PartitionSpec(None, "tensor"))
    weights = {
        "up": jax.ShapeDtypeStruct((48, 64), jnp.float32, sharding=split),
        "key_bias": jax.ShapeDtypeStruct((2, 128), jnp.float32, sharding=split),
    }

    def gathered(kind: str, *shape: int, in_loop: bool = True) -> tuple[str, ...]:
        return compiled._gathered([Collective(kind, in_loop, 5, 1, 8, (shape,))], weights)

    assert gathered("all-gather", 1, 64, 48) == ("5 x all-gather of 1x64x48",)
    assert gathered("all-to-all", 48, 8) == ("5 x all-to-all of 48x8",)
    assert gathered("all-gather", 64, 49) == ()
    assert gathered("all-gather", 2, 128) == ()  # a bias
    assert gathered("all-reduce", 48, 64) == ()
    assert gathered("all-gather", 48, 64, in_loop=False) == ()


def test_exchanges_and_memory_are_linear_in_layers() -> None:
    def made(times: float, moved: float, temporaries: float) -> Compiled:
        memory = compiled.Memory(10 * times, 1.0, 0.0, temporaries)
        exchanges = (Exchange("all-reduce", True, 4, times, moved),)
        return Compiled(memory, exchanges, (), 2.0 * times)

    found = compiled._extrapolated([made(3, 30, 5), made(5, 50, 4)], 10)
    assert found.exchanges == (Exchange("all-reduce", True, 4, 21, 210),)
    assert found.memory == compiled.Memory(210, 1, 0, 0)  # temporaries are never negative
    assert found.scheduled == 42


def test_a_program_that_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument's bytes are known all the same."""
    of = setting(8, 1, 1)
    monkeypatch.setattr(opened, "compiled", lambda *_, **__: "no memory is left")
    made = compiled.update(of, 2, 0.0)
    assert made.short == "no memory is left"
    assert made.memory.needed == programs.local_bytes(programs.update(of).arguments)
    work = memory.rollout(of.config, of.shards)
    made = compiled.decode(of, work, 0.0, whole=False)
    assert made.short == "no memory is left"
    assert made.memory.needed == programs.local_bytes(programs.decode(of, work).arguments)
