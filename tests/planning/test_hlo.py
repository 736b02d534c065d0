"""What is read from compiled text."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from rft_jax.planning import hlo
from rft_jax.planning.hlo import Collective

PROGRAM = """
HloModule jit_decode, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.2 = f32[] add(%a, %b)
}

%all-reduce-scatter.3 (p: bf16[1024,8]) -> bf16[1024,8] {
  %p = bf16[1024,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-reduce.9 = bf16[1024,8]{1,0:T(8,128)(2,1)} all-reduce(%p), to_apply=%add.1
}

%inner_condition (s: (s32[])) -> pred[] {
  %s = (s32[]{:T(128)}) parameter(0)
  %constant.1 = s32[]{:T(128)} constant(30)
  %element.1 = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %compare.1 = pred[]{:T(512)} compare(%element.1, %constant.1), direction=LT
}

%inner_body (t: (s32[])) -> (s32[]) {
  %t = (s32[]{:T(128)}) parameter(0)
  %gather.1 = bf16[4,512]{1,0:T(8,128)(2,1)} all-gather(%x), dimensions={0}, metadata={op_name="jit(f)/while/body/while/body/mlp/dot_general"}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %scatter.1 = bf16[1024,8]{1,0} fusion(%gather.1), kind=kCustom, calls=%all-reduce-scatter.3
  ROOT %tuple.1 = (s32[]{:T(128)}) tuple(%element.2)
}

%outer_condition (s: (s32[], s32[])) -> pred[] {
  ROOT %compare.2 = pred[]{:T(512)} compare(%element.3, %limit), direction=LT
}

%outer_body (t: (s32[])) -> (s32[]) {
  %while.1 = (s32[]{:T(128)}) while(%t), condition=%inner_condition, body=%inner_body
  %permute = (f32[16]{0:T(128)}, f32[16]{0:T(128)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%y), source_target_pairs={{0,1}}
  %permute.done = f32[16]{0:T(128)} collective-permute-done(%permute)
  ROOT %tuple.2 = (s32[]{:T(128)}) tuple(%element.4)
}

ENTRY %main.1 (q: f32[64]) -> f32[64] {
  %q = f32[64]{0:T(128)} parameter(0)
  %copy.7 = bf16[1024,1024]{0,1:T(8,128)(2,1)} copy(%z), backend_config={"window_config":{"estimated_cycles":"70"}}
  %while.2 = (s32[]{:T(128)}) while(%q), condition=%outer_condition, body=%outer_body
  ROOT %all-reduce.1 = f32[64]{0:T(128)} all-reduce(%q), to_apply=%add.1
}
"""  # noqa: E501


def test_bytes_of_types() -> None:
    assert hlo.shapes_of("(bf16[3,4]{1,0:T(8,128)(2,1)}, f32[], u32[2]{0}, pred[5])") == [
        ((3, 4), 24), ((), 4), ((2,), 8), ((5,), 5),
    ]  # fmt: skip
    assert hlo.shapes_of("f8e4m3[16]") == [((16,), 16)]


def test_collectives_are_counted_with_the_trips_of_their_loops() -> None:
    found = sorted(one[:4] for one in hlo.collectives(PROGRAM, otherwise=4))
    assert found == [
        ("all-gather", True, 120, 4 * 512 * 2),
        ("all-reduce", False, 1, 2 * 64 * 4),
        ("collective-permute", True, 4, 16 * 4),
        # Named after what it is; of an all-reduce it is but one half.
        ("reduce-scatter", True, 120, 1024 * 8 * 2),
    ]


def test_a_collective_that_is_spread_over_fusions_counts_once() -> None:
    spread = PROGRAM.replace(
        "  %copy.7",
        "  %piece.1 = bf16[8,8]{1,0} all-gather(%q), channel_id=3, dimensions={0}\n"
        "  %piece.2 = bf16[8,8]{1,0} all-gather(%q), channel_id=3, dimensions={0}\n"
        "  %copy.7",
    )
    assert hlo.collectives(spread).count(Collective("all-gather", False, 1, 128, 0, ((8, 8),))) == 1


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups=[64,4]<=[256]", 4),
        ("replica_groups=[2,8]<=[4,4]T(1,0)", 8),
        ("replica_groups={{0,4,8,12},{1,5,9,13}}", 4),
        ("source_target_pairs={{0,1},{1,0}}", 2),
        ("replica_groups={}", 0),
    ],
)
def test_devices_of_a_collective(groups: str, size: int) -> None:
    assert (
        hlo.group_size(f"%a = f32[4] all-reduce(%b), channel_id=1, {groups}, to_apply=%c") == size
    )


def test_cycles() -> None:
    found = [(runs.instruction.name, runs.times, count) for runs, count in hlo.cycles(PROGRAM, 4)]
    assert sorted(found) == [("copy.7", 1, 70), ("gather.1", 120, 100)]


def test_text_of_this_machines_compiler_is_read_too() -> None:
    def steps(x: Any) -> Any:
        return jax.lax.fori_loop(0, 5, lambda _, y: jax.lax.optimization_barrier(y @ y), x)

    text = jax.jit(steps).lower(jnp.ones((8, 8))).compile().as_text()
    inside = {(runs.times, runs.in_loop) for runs in hlo.walk(text)}
    assert (5, True) in inside
    assert (1, False) in inside
