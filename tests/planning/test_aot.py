"""Programs compiled for this machine: what two layers say of more, and what is in a loop."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from planned import MODEL, config

from rft_jax.config import MeshConfig
from rft_jax.planning import aot, memory, programs, targets
from rft_jax.planning.aot import Compiled, Exchange
from rft_jax.planning.hlo import Collective
from rft_jax.planning.programs import Setting


@functools.cache
def setting(data: int, fsdp: int, tensor: int) -> Setting:
    model = replace(MODEL, num_layers=4)
    run = config(model, mesh=MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
    return programs.setting(run, targets.at_hand())


def decoding(of: Setting, *, whole: bool = False) -> Compiled:
    """The decode loop of a run's rollout, compiled."""
    make = functools.partial(programs.decode, work=memory.rollout(of.config, of.shards))
    return aot.measure(make, of, 0.0, whole=whole, only_loops=True)


@pytest.mark.slow
def test_two_layers_tell_of_four() -> None:
    """Of decoding over data, fsdp and tensor: exchanges exactly, memory nearly."""
    of = setting(2, 2, 2)
    few, whole = decoding(of, whole=False), decoding(of, whole=True)
    assert few.exchanges == whole.exchanges
    assert few.gathered == whole.gathered == ()
    assert few.memory["arguments"] == pytest.approx(whole.memory["arguments"], rel=0.02)
    assert few.needed == pytest.approx(whole.needed, rel=0.1)


@pytest.mark.slow
def test_the_decode_loop_sums_activations_over_tensor_devices_only() -> None:
    of = setting(2, 2, 2)
    inside = [e for e in decoding(of).exchanges if e.in_loop]
    sums = [e for e in inside if e.kind == "all-reduce" and e.group == 2]
    assert sum(e.times for e in sums) >= 2 * of.config.model.num_layers
    assert decoding(setting(8, 1, 1)).exchanges == ()


@pytest.mark.slow
def test_the_update_needs_what_the_state_needs_and_more() -> None:
    of = setting(2, 4, 1)
    made = aot.measure(programs.update, of, 0.0, trips=2)
    state = sum(memory.held(of.config, of.shards).values())
    assert made.needed > state
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
        return aot._gathered([Collective(kind, in_loop, 5, 1, 8, (shape,))], weights)

    assert gathered("all-gather", 1, 64, 48) == ("5 x all-gather of 1x64x48",)
    assert gathered("all-to-all", 48, 8) == ("5 x all-to-all of 48x8",)
    assert gathered("all-gather", 64, 49) == ()
    assert gathered("all-gather", 2, 128) == ()  # a bias
    assert gathered("all-reduce", 48, 64) == ()
    assert gathered("all-gather", 48, 64, in_loop=False) == ()


def test_exchanges_and_memory_are_linear_in_layers() -> None:
    def made(times: float, moved: float, temporaries: float) -> Compiled:
        memory = {"arguments": 10 * times, "outputs": 1.0, "temporaries": temporaries}
        exchanges = (Exchange("all-reduce", True, 4, times, moved),)
        return Compiled(memory, exchanges, (), 2.0 * times)

    found = aot._extrapolated(made(3, 30, 5), made(5, 50, 4), 10)
    assert found.exchanges == (Exchange("all-reduce", True, 4, 21, 210),)
    # Temporaries are never negative.
    assert found.memory == {"arguments": 210, "outputs": 1, "temporaries": 0}
    assert found.scheduled == 42


def test_a_program_that_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument's bytes are known all the same."""
    of = setting(8, 1, 1)
    monkeypatch.setattr(aot, "compiled", lambda *_, **__: "no memory is left")
    made = aot.measure(programs.update, of, 0.0, trips=2)
    assert made.short == "no memory is left"
    assert made.needed == programs.update(of).local_bytes
    made = decoding(of)
    assert made.short == "no memory is left"
    work = memory.rollout(of.config, of.shards)
    assert made.needed == programs.decode(of, work).local_bytes


def test_opened_loops_do_once_what_a_loop_does_often() -> None:
    def steps(x: Any) -> Any:
        x = jax.lax.while_loop(lambda y: y < 100, lambda y: y * 2, x)
        x = jax.lax.fori_loop(x - 6, 9 + x, lambda i, y: y + i + 5, x)
        return jax.lax.scan(lambda y, _: (y + 1, None), x, None, length=3)[0]

    program = aot.open_loops(jax.make_jaxpr(jax.jit(steps))(jnp.int32(3)))
    assert jaxpr_as_fun(program)(jnp.int32(3)) == [6 + 0 + 5 + 3]
    assert "while[" not in str(program)
    assert "unroll=3" in str(program)
    assert jax.jit(steps)(jnp.int32(3)) > 192


def test_a_compiler_that_says_no_time_has_none() -> None:
    """This machine's says none."""
    assert aot.seconds(jax.jit(lambda x: x + 1), (jnp.ones(3),), {}) == 0


@pytest.mark.parametrize(("said", "found"), [(-3.0, 0.0), (2.5, 2.5)])
def test_a_negative_time_is_none(
    said: float, found: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made:
        def cost_analysis(self) -> dict[str, float]:
            return {"optimal_seconds": said}

    monkeypatch.setattr(aot, "compiled", lambda *_: Made())
    assert aot.seconds(jax.jit(lambda x: x), (jnp.ones(3),), {}) == found
    monkeypatch.setattr(aot, "compiled", lambda *_: "no memory is left")
    assert aot.seconds(jax.jit(lambda x: x), (jnp.ones(3),), {}) == 0


def test_memory_that_does_not_suffice_is_no_error() -> None:
    """Any other error of the compiler is one."""

    class Program:
        def __init__(self, message: str) -> None:
            self.message = message

        def lower(self, *_: Any, **__: Any) -> Program:
            return self

        def compile(self) -> Any:
            raise jax.errors.JaxRuntimeError(self.message)

    short = "RESOURCE_EXHAUSTED: XLA:TPU ran out of memory. Used 20G of 16G.\nLargest: ..."
    assert aot.compiled(Program(short), ()) == "XLA:TPU ran out of memory. Used 20G of 16G."
    with pytest.raises(jax.errors.JaxRuntimeError):
        aot.compiled(Program("INTERNAL: a bug"), ())
