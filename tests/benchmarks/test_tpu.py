"""What is read from compiled text, and the arithmetic of estimates; no TPU compiler is needed."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import floors, tpu, tpu_costs, tpu_programs, tpu_table, tpu_text
from benchmarks.tpu_costs import Cost
from benchmarks.tpu_programs import CHIPS
from benchmarks.tpu_text import Collective

CHIP = CHIPS["v5e"]

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
    assert tpu_text.shape_bytes("(bf16[3,4]{1,0:T(8,128)(2,1)}, f32[], u32[2]{0}, pred[5])") == [
        24, 4, 8, 5,
    ]  # fmt: skip
    assert tpu_text.shape_bytes("f8e4m3[16]") == [16]


def test_collectives_are_counted_with_the_trips_of_their_loops() -> None:
    found = sorted(tpu_text.collectives(PROGRAM, otherwise=4))
    assert found == [
        Collective("all-gather", True, 120, 4 * 512 * 2),
        Collective("all-reduce", False, 1, 2 * 64 * 4),
        Collective("collective-permute", True, 4, 16 * 4),
        # Named after what it is; of an all-reduce it is but one half.
        Collective("reduce-scatter", True, 120, 1024 * 8 * 2),
    ]


def test_a_collective_that_is_spread_over_fusions_counts_once() -> None:
    spread = PROGRAM.replace(
        "  %copy.7",
        "  %piece.1 = bf16[8,8]{1,0} all-gather(%q), channel_id=3, dimensions={0}\n"
        "  %piece.2 = bf16[8,8]{1,0} all-gather(%q), channel_id=3, dimensions={0}\n"
        "  %copy.7",
    )
    assert tpu_text.collectives(spread).count(Collective("all-gather", False, 1, 128)) == 1


def test_cycles_and_copies() -> None:
    found = [
        (runs.instruction.name, runs.times, count) for runs, count in tpu_text.cycles(PROGRAM, 4)
    ]
    assert found == [("gather.1", 120, 100), ("copy.7", 1, 70)]
    assert tpu_text.copied(PROGRAM, loop=False) == 2 * 2**20
    assert tpu_text.copied(PROGRAM, loop=True) == 0
    (slowest,) = tpu_text.slowest(PROGRAM, 1e6, 4, loop=True)
    assert slowest["count"] == 120
    assert slowest["ms"] == pytest.approx(12.0)
    assert slowest["operation"] == "gather (body/mlp/dot_general)"


def test_text_of_this_machines_compiler_is_read_too() -> None:
    def steps(x: Any) -> Any:
        return jax.lax.fori_loop(0, 5, lambda _, y: jax.lax.optimization_barrier(y @ y), x)

    text = jax.jit(steps).lower(jnp.ones((8, 8))).compile().as_text()
    inside = {(runs.times, runs.in_loop) for runs in tpu_text.walk(text)}
    assert (5, True) in inside
    assert (1, False) in inside


def test_the_longest_of_three_is_the_roofline() -> None:
    assert tpu_costs.roofline(Cost(CHIP.flops, 0, 0, -1), CHIP) == 1
    assert tpu_costs.roofline(Cost(CHIP.flops, 3 * CHIP.bandwidth, 0, -1), CHIP) == 3
    assert tpu_costs.roofline(Cost(0, 0, 2 * CHIP.links, -1), CHIP) == 2


@pytest.mark.parametrize(
    ("seconds", "believed"), [(-13.0, False), (0.0, False), (0.5, False), (1.1, True), (30, False)]
)
def test_the_compilers_time_is_believed_where_it_can_be(seconds: float, believed: bool) -> None:
    assert tpu_costs.plausible(seconds, floor=1.0, bound=2.0) is believed


def test_costs_grow_with_layers() -> None:
    one, two = Cost(10, 100, 0, 1), Cost(13, 140, 5, 1.5)
    assert tpu_costs.of_layers([one, two], 1) == one
    assert tpu_costs.of_layers([one, two], 2) == two
    assert tpu_costs.of_layers([one, two], 30) == Cost(
        10 + 29 * 3, 100 + 29 * 40, 29 * 5, 1 + 29 * 0.5
    )


def test_opened_loops_do_once_what_a_loop_does_often() -> None:
    def steps(x: Any) -> Any:
        x = jax.lax.while_loop(lambda y: y < 100, lambda y: y * 2, x)
        x = jax.lax.fori_loop(0, 9, lambda i, y: y + i + 5, x)
        return jax.lax.scan(lambda y, _: (y + 1, None), x, None, length=3)[0]

    with tpu_costs.opened_loops(__name__):
        assert jax.jit(lambda x: steps(x))(jnp.int32(3)) == 3 * 2 + 0 + 5 + 3
        text = str(jax.make_jaxpr(lambda x: steps(x))(jnp.int32(3)))
    assert "while[" not in text
    assert jax.jit(steps)(jnp.int32(3)) == 192 + 36 + 45 + 3


def test_floors_of_a_device() -> None:
    decode, update = tpu_programs.PROGRAMS[0], tpu_programs.PROGRAMS[2]
    weights = floors.weights(tpu_programs.SHAPE)
    assert weights == pytest.approx(6.49e9, rel=0.01)
    found = tpu.update_floor(update, tpu_programs.SHAPE.layers)
    tokens = update.microbatches * update.rows * update.row_len / 8
    assert found.flops == pytest.approx(6 * weights * tokens, rel=0.1)
    assert tpu_table.held({"arguments": 5, "outputs": 3, "temporaries": 2, "aliases": 3}) == 7
    assert decode.chip == CHIPS["v5p"]


def test_without_the_compiler_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["benchmarks.tpu"])
    with pytest.raises(SystemExit) as ended:
        tpu.main()
    message = str(ended.value.code)
    assert 'pip install "jax[tpu]"' in message
    assert "\n" not in message
