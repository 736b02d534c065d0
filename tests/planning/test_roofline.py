"""What a step costs: counts beside floors, and seconds at given rates."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from planned import ALONE, MODEL, MODELS, config

from benchmarks.floors import prefill
from benchmarks.work import SHAPES, Work
from rft_jax.config import ModelConfig
from rft_jax.observe.flops import Cost, Speeds
from rft_jax.planning import memory, plan, roofline, targets
from rft_jax.planning.memory import Sampled, Shards
from rft_jax.planning.roofline import Supposed


def test_the_prefill_is_that_of_the_floors() -> None:
    shape = SHAPES["tiny"]
    model = ModelConfig(
        num_layers=shape.layers, d_model=shape.d_model, num_heads=shape.heads,
        num_kv_heads=shape.kv_heads, head_dim=shape.head_dim, mlp_dim=shape.mlp,
        vocab_size=shape.vocab, tie_embeddings=True,
    )  # fmt: skip
    settings = config(model, data=replace(config().data, max_prompt_tokens=28))
    found = roofline.prefill(settings, ALONE, Sampled(16, 4, 0))
    assert found.flops == prefill(Work(size="tiny", prompts=16, prompt_len=28)).flops


def test_an_update_costs_three_forward_passes() -> None:
    """Four of the head, whose logits are recomputed; with model.remat=full of everything; with
    adapters no gradient of weights but their own."""
    supposed = Supposed(10, 50, 0.5, 0, 0)
    counted = memory.model_of(config())
    seen, body, head = counted.attention(64.5), 2.0 * counted.body, 2.0 * counted.head
    adapters = 2.0 * memory.model_of(config(MODELS["adapters"])).adapters
    for model, expected in (
        (MODEL, 3 * (body + seen) + 4 * head),
        (replace(MODEL, remat="full"), 4 * (body + seen) + 4 * head),
        (MODELS["adapters"], 2 * body + 3 * (seen + adapters) + 3 * head),
    ):
        # 32 x 60 tokens at 85 % are 18 rows, so three micro-batches of 8.
        assert roofline.microbatches(config(model), supposed) == 3
        found = roofline.update(config(model), ALONE, 3)
        assert found.flops == pytest.approx(3 * 8 * 128 * expected)


def test_incorrect_outputs_are_counted_where_they_are_trained_on() -> None:
    """64 x 60 tokens at 85 % are 36 rows, whatever share is accepted."""
    grpo = config(method="grpo")
    assert roofline.microbatches(grpo, Supposed(10, 50, 0.1, 0, 0)) == 5


def test_devices_share_the_work() -> None:
    work = Sampled(16, 4, 32)
    alone = roofline.decode(config(), ALONE, work, 50)
    four = roofline.decode(config(), Shards(4, 1, 1), work, 50)
    assert four.flops == pytest.approx(alone.flops / 4)
    assert four.bytes > alone.bytes / 4  # each reads all weights
    assert roofline.update(config(), ALONE, 3).links == 0
    assert roofline.update(config(), Shards(1, 4, 1), 3).links > 0


def test_the_slowest_of_three_is_the_time_and_what_is_waited_for_comes_on_top() -> None:
    at = Speeds(flops=10.0, bandwidth=5.0, links=2.0, tensor=1.0, round=0.5)
    assert Cost(10, 0).seconds(at) == 1
    assert Cost(10, 10, 6).seconds(at) == 3
    assert Cost(10, 10, 6).bound(at) == "links"
    assert Cost(10, 0, 0, 2, 4).seconds(at) == 1 + 2 + 4 * 0.5
    assert Cost(10, 0, 0, 2, 4).bound(at) == "tensor exchange"
    assert (Cost(10, 10, 6) + Cost(1, 2, 3)).times(2) == (22, 24, 18, 0, 0)


def test_tensor_parallel_products_wait_for_each_other() -> None:
    """Two sums of the activations in every layer: those of 32 slots, of float32."""
    like = roofline.full_step(config(), Shards(1, 1, 2), Sampled(16, 4, 32))
    found = roofline.step(config(), Shards(1, 1, 2), like)
    assert found.rounds == 2 * MODEL.num_layers
    assert found.tensor == 2 * MODEL.num_layers * 32 * MODEL.d_model * 4
    assert roofline.step(config(), ALONE, like).rounds == 0


def test_the_ring_grows_with_the_outputs() -> None:
    """Of 100 tokens at most: 25 as they do not halve below 32; all slots at work from the start."""
    found = roofline.stretches(config(), ALONE, Sampled(16, 4, 0), 60)
    assert [(one.steps, one.slots, one.ring) for one in found] == [
        (50, 64, 50), (10, 64, 100), (40, 16, 100),
    ]  # fmt: skip
    refilled = roofline.stretches(config(), ALONE, Sampled(16, 4, 32), 60)
    assert [(one.steps, one.slots, one.ring) for one in refilled] == [
        (50, 32, 50), (70, 32, 100), (40, 8, 100),
    ]  # fmt: skip


def test_a_floor_is_below_the_count() -> None:
    work = Sampled(16, 4, 32)
    like = roofline.full_step(config(), ALONE, work)
    least, count = (
        roofline.decode_floor(config(), ALONE, work),
        roofline.step(config(), ALONE, like),
    )
    assert least.bytes < count.bytes
    assert least.flops < count.flops
    model = replace(MODEL, remat="full")
    least = roofline.update_floor(config(model), ALONE, 3)
    count = roofline.update(config(model), ALONE, 3)
    assert 0.6 < least.flops / count.flops < 0.8
    assert least.bytes < count.bytes


def test_a_group_has_the_links_of_the_sides_that_it_spans() -> None:
    """Of v5e's four links: one along a side that is open, two where it closes to a ring."""

    def speeds(sides: tuple[int, int], of: Shards) -> Speeds:
        chip = targets.CHIPS["v5e"]
        count = math.prod(sides)
        found = targets.Target("v5e:of", chip, count, chip.memory, sides).speeds(of, "bfloat16")
        assert found is not None
        return found

    whole = targets.CHIPS["v5e"].links
    small = speeds((4, 4), Shards(1, 4, 4))
    assert (small.tensor, small.links) == (whole / 4, whole / 4)
    assert speeds((4, 4), Shards(1, 16, 1)).links == whole / 2
    large = speeds((16, 16), Shards(1, 16, 16))
    assert (large.tensor, large.links) == (whole / 2, whole / 2)
    assert speeds((16, 16), Shards(1, 256, 1)).links == whole
    assert speeds((16, 16), Shards(4, 4, 16)).round == pytest.approx(16e-6)


@pytest.mark.parametrize(
    ("seconds", "believed"), [(-13.0, False), (0.0, False), (0.5, False), (1.1, True), (30, False)]
)
def test_the_compilers_time_is_believed_where_it_can_be(seconds: float, believed: bool) -> None:
    assert plan.plausible(seconds, floor=1.0, bound=2.0) is believed
