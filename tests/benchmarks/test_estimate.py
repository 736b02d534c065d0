"""Memory and time of experiments on named devices: the count beside real shapes and compilers."""

from __future__ import annotations

import ast
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from benchmarks import compiled_memory, estimate, floors, memory, step_costs
from benchmarks.devices import DEVICES
from benchmarks.memory import Sampled, Shards
from benchmarks.step_costs import Cost, Lengths
from benchmarks.work import SHAPES, Work
from rft_jax import experiments
from rft_jax.batches import Prompts
from rft_jax.config import (
    Config,
    ConfigError,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RolloutConfig,
    SelectionConfig,
    TokenizerConfig,
    UpdateConfig,
)
from rft_jax.keys import Purpose, run_key
from rft_jax.layout import make_layout, param_shapes
from rft_jax.models import adapters, transformer
from rft_jax.sampling import sampler
from rft_jax.training.optimizer import make_optimizer

ROOT = Path(__file__).resolve().parents[2]
ALONE = Shards(1, 1, 1)
MODEL = ModelConfig(
    num_layers=3, d_model=24, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=40, vocab_size=64
)
LORA = {"lora_rank": 5, "lora_alpha": 5.0, "lora_targets": ("query", "output", "gate", "down")}
MODELS = {
    "plain": MODEL,
    "tied": replace(MODEL, tie_embeddings=True, qkv_bias=True),
    "bfloat16": replace(MODEL, compute_dtype="bfloat16", qk_norm=True),
    "adapters": replace(MODEL, **LORA),
    "adapters in bfloat16": replace(MODEL, compute_dtype="bfloat16", tie_embeddings=True, **LORA),
}
MESHES = (ALONE, Shards(4, 1, 1), Shards(1, 8, 1), Shards(2, 2, 2))
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
each_mesh = pytest.mark.parametrize("of", MESHES, ids=lambda of: "x".join(map(str, of)))


def config(model: ModelConfig = MODEL, **changes: Any) -> Config:
    base = Config(
        method="online_rft",
        init_from="hf:model",
        steps=4,
        data=DataConfig(
            train="jsonl:q", validation="jsonl:q", test="jsonl:q",
            max_prompt_tokens=12, max_completion_tokens=100,
        ),
        tokenizer=TokenizerConfig(path="hf:model"),
        model=model,
        rollout=RolloutConfig(questions_per_step=16, samples_per_question=4, slots=32),
        selection=SelectionConfig(),
        update=UpdateConfig(row_length=128, rows_per_microbatch=8),
        evaluation=EvaluationConfig(test_samples_per_question=2, questions_per_batch=8),
    )  # fmt: skip
    return replace(base, **changes)


def mesh_of(of: Shards) -> Mesh:
    devices = np.array(jax.devices()[: math.prod(of)])
    return Mesh(devices.reshape(of), ("data", "fsdp", "tensor"))


def local_bytes(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.shape  # counts of the optimizer apart
    )


def tree_bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


# What a run holds


@pytest.mark.slow
@each_mesh
@each_model
@pytest.mark.parametrize("first", ["float32", "bfloat16"])
def test_parameters_and_moments_are_those_of_the_layout(
    model: ModelConfig, of: Shards, first: Any
) -> None:
    settings = config(model, optimizer=OptimizerConfig(first_moment_dtype=first))
    optimizer = make_optimizer(settings.optimizer, settings.steps)
    layout = make_layout(model, mesh_of(of), optimizer, 64)
    held = memory.held(settings, of)
    assert held["masters"] == local_bytes(layout.state.params)
    assert held["moments"] == local_bytes(layout.state.optimizer)
    frozen = local_bytes(layout.base) if model.lora_rank else 0
    assert held.get("frozen base", 0) == frozen


def test_a_reference_is_a_copy_of_what_is_trained() -> None:
    held = memory.held(config(objective=ObjectiveConfig(kl_coefficient=0.1)), ALONE)
    assert held["reference"] == held["masters"]


@each_mesh
@each_model
def test_the_rollouts_weights_are_cast_and_whole_along_the_width(
    model: ModelConfig, of: Shards
) -> None:
    mesh = mesh_of(of)
    params = param_shapes(model, mesh, 64)
    where = make_layout(model, mesh, make_optimizer(OptimizerConfig(), 1), 64).rollout
    cast = jax.eval_shape(functools.partial(transformer.cast, dtype=model.compute_dtype), params)
    expected = local_bytes(
        jax.tree.map(
            lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), cast, where
        )
    )
    found = memory.rollout_weights(config(model), of)
    assert found["the same by layer"] == expected
    same = of.fsdp == 1 and model.compute_dtype == "float32"
    assert found["rollout weights"] == (0 if same else expected)


# What sampling adds


@pytest.mark.slow
@pytest.mark.parametrize(
    "work", [Sampled(16, 4, 32), Sampled(16, 4, 0), Sampled(32, 1, 8)], ids=str
)
@each_mesh
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_caches_are_those_of_the_sampler(dtype: Any, of: Shards, work: Sampled) -> None:
    """Of one shard: what `start` makes of its questions, but for small arrays."""
    settings = config(replace(MODEL, compute_dtype=dtype))
    questions, ring = work.questions // of.batch, 40
    number = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    prompts = Prompts(number((questions, 12)), number((questions,)), number((questions,)))
    params = memory.policy(settings).params
    cast = functools.partial(transformer.cast, dtype=dtype)
    params = jax.eval_shape(lambda params: transformer.unstack(cast(params)), params)
    shape = sampler.slots_shape(questions, work.samples, -(-work.slots // of.batch))
    store, slots = jax.eval_shape(
        functools.partial(
            sampler.start, mesh=None, config=settings.model, shape=shape, ring=ring,
            max_new_tokens=100,
        ),
        params,
        prompts,
        number((questions, work.samples)),
        jax.eval_shape(lambda: run_key(seed=0, purpose=Purpose.ROLLOUT)),
        number(()),
    )  # fmt: skip
    found = memory.caches(settings, of, work)
    assert found.store * of.tensor == tree_bytes(store.caches)
    assert found.prompts * of.tensor == tree_bytes(slots.cache.prompts)
    assert found.column * ring * of.tensor == tree_bytes(slots.cache.own)
    assert found.outputs == tree_bytes(slots.outputs[:3])


def test_the_worst_moment_is_taken() -> None:
    settings = config()
    moments = memory.sampling(settings, ALONE, memory.rollout(settings, ALONE), tpu=False)
    assert list(moments) == ["prefill", "decode", "growth"]
    found = estimate.memory_of(settings, ALONE, DEVICES["t4"])["sampling"]
    held = sum(memory.held(settings, ALONE).values())
    worst = max(sum(parts.values()) for parts in moments.values())
    assert sum(found.values()) == held + worst


def test_fewer_slots_take_less() -> None:
    few, many = (
        memory.sampling(config(), ALONE, Sampled(16, 4, slots), tpu=False)["growth"]
        for slots in (8, 32)
    )
    assert few["slots"] < many["slots"]


# What the update adds


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("targets", [(), ("query", "output", "gate", "down"), ("key", "up")])
def test_activations_kept_are_those_that_jax_keeps(remat: Any, targets: tuple[str, ...]) -> None:
    model = replace(MODEL, compute_dtype="bfloat16", remat=remat)
    if targets:
        model = replace(model, **LORA | {"lora_targets": targets})
    rows, slots = 2, 16
    frozen, trained = adapters.split(memory.policy(config(model)).params, model)
    tokens = jax.ShapeDtypeStruct((rows, slots), jnp.int32)

    def backward(frozen: Any, trained: Any, tokens: Any) -> Any:
        positions = jnp.broadcast_to(jnp.arange(slots), (rows, slots))

        def forward(trained: Any) -> Any:
            params = adapters.join(frozen, trained)
            ones = jnp.ones_like(tokens)
            return transformer.hidden_states(params, tokens, positions, ones, config=model)

        return jax.vjp(forward, trained)[1]

    residuals = jax.tree.leaves(jax.eval_shape(backward, frozen, trained, tokens))
    weights = {leaf.shape for leaf in jax.tree.leaves((frozen, trained))}
    of_layers = [
        leaf
        for leaf in residuals
        if leaf.shape[:1] == (model.num_layers,) and leaf.shape not in weights
    ]
    numbers = tree_bytes(of_layers) / 2 / (model.num_layers * rows * slots)
    assert numbers == memory.kept_numbers(model, ALONE)


LARGER = ModelConfig(
    num_layers=4, d_model=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=512,
    vocab_size=4096, tie_embeddings=True,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        replace(LARGER, remat="full"),
        replace(LARGER, tie_embeddings=False, lora_rank=8, lora_alpha=8.0, lora_targets=("up",)),
    ],
    ids=["tied, remat", "untied, adapters"],
)
def test_the_count_is_near_what_a_compiler_allots(model: ModelConfig) -> None:
    """This machine's, for shapes at which weights and activations tell."""
    settings = config(
        model,
        update=UpdateConfig(row_length=512, rows_per_microbatch=4, logits_at_once=2**18),
    )
    rows = list(itertools.islice(compiled_memory.rows(settings, "cpu"), 4))
    names = ["update", "rollout, prefill", "rollout, growth", "rollout, decode"]
    assert [row.program for row in rows] == names
    for row in rows:
        assert 0.75 < row.counted / row.compiled < 1.6, row


# Costs


def test_the_prefill_is_that_of_the_floors() -> None:
    shape = SHAPES["tiny"]
    model = ModelConfig(
        num_layers=shape.layers, d_model=shape.d_model, num_heads=shape.heads,
        num_kv_heads=shape.kv_heads, head_dim=shape.head_dim, mlp_dim=shape.mlp,
        vocab_size=shape.vocab, tie_embeddings=True,
    )  # fmt: skip
    settings = config(model, data=replace(config().data, max_prompt_tokens=28))
    found = step_costs.prefill(settings, ALONE, Sampled(16, 4, 0))
    assert found.flops == floors.prefill(Work(size="tiny", prompts=16, prompt_len=28)).flops


def test_an_update_costs_three_forward_passes() -> None:
    """Four of the head, whose logits are made anew; with model.remat=full of everything; with
    adapters no gradient of weights."""
    lengths = Lengths(prompt=10, output=50, pass_rate=0.5)
    shape = step_costs.shape_of(config())
    seen = floors.attention_flops(shape, 64)
    body, head = 2.0 * floors.body_weights(shape) + seen, 2.0 * floors.head_weights(shape)
    for model, expected in (
        (MODEL, 3 * body + 4 * head),
        (replace(MODEL, remat="full"), 4 * body + 4 * head),
        (MODELS["adapters"], 2 * body + 3 * head),
    ):
        found = step_costs.update(config(model), ALONE, 32, lengths)
        # 32 x 60 tokens at 85 % are 18 rows, so three micro-batches of 8.
        assert found.flops == pytest.approx(3 * 8 * 128 * expected)


def test_devices_share_the_work() -> None:
    lengths, work = Lengths(10, 50, 0.5), Sampled(16, 4, 32)
    alone = step_costs.decode(config(), ALONE, work, lengths)
    four = step_costs.decode(config(), Shards(4, 1, 1), work, lengths)
    assert four.flops == pytest.approx(alone.flops / 4)
    assert four.bytes > alone.bytes / 4  # each reads all weights
    assert step_costs.update(config(), ALONE, 32, lengths).links == 0
    assert step_costs.update(config(), Shards(1, 4, 1), 32, lengths).links > 0


def test_the_slowest_of_three_is_the_time() -> None:
    device = DEVICES["v5e-4"]
    rate = device.flops["bfloat16"]
    assert Cost(rate, 0, 0).seconds(device, "bfloat16") == 1
    assert Cost(rate, 2 * device.bandwidth, 3 * device.links).seconds(device, "bfloat16") == 3


# The command


def test_meshes_are_made_of_the_devices() -> None:
    assert memory.shards(MeshConfig(data=1, fsdp=-1), 4) == (1, 4, 1)
    assert memory.shards(MeshConfig(), 8) == (8, 1, 1)
    with pytest.raises(ConfigError, match="there are 4 devices"):
        memory.shards(MeshConfig(fsdp=3), 4)
    with pytest.raises(ConfigError, match="there are 4 devices"):
        memory.shards(MeshConfig(data=1, fsdp=2), 4)


FLOAT32 = tuple(f"--{run}.model.compute_dtype=float32" for run in ("rft", "online_rft"))
FITS = [
    ("gsm8k_qwen2.5_0.5b", "t4", FLOAT32),
    ("gsm8k_qwen2.5_0.5b", "a4000", ()),
    ("gsm8k_qwen2.5_0.5b", "v5e-1", ()),
    ("gsm8k_qwen2.5_1.5b", "a100-80gb", ()),
    ("gsm8k_qwen2.5_1.5b", "h100", ()),
    ("gsm8k_qwen2.5_1.5b", "v5e-4", ()),
    ("math_deepseekmath_7b", "v5p-8", ("--test-questions=5000",)),
    ("math_deepseekmath_7b", "8xa100-80gb", ("--test-questions=5000",)),
    ("math_deepseekmath_7b", "8xh100", ("--test-questions=5000",)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "device", "options"), FITS, ids=lambda value: str(value))
def test_experiments_fit_their_devices_as_their_docstrings_say(
    name: str, device: str, options: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "experiments" / f"{name}.py"
    assert estimate.main([str(path), "--device", device, *options]) == 0
    said = capsys.readouterr().out
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    (line,) = (
        row for row in said.splitlines() if row.startswith("online_rft: ") and "hours" in row
    )
    figures = line.removeprefix("online_rft: ").partition(", of them")[0]
    assert figures in " ".join(text.split())
    assert "Counted and estimated, not measured." in said


def test_what_does_not_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ROOT / "experiments" / "gsm8k_qwen2.5_1.5b.py")
    assert estimate.main([path, "--device", "t4", "--only", "rft"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("estimate: does not fit t4, 13.6 GiB: rft (sampling: ")


def test_a_run_without_rollouts_is_estimated_too(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ROOT / "experiments" / "arithmetic.py")
    assert estimate.main([path, "--device", "t4", "--only", "sft"]) == 0
    assert "| | update | evaluation |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "k80"], "--device is 'k80', which is not known; choose one of t4,"),
        (["--device", "t4", "--only", "rtf"], "--only names 'rtf', which is no run"),
        (["--device", "v5e-4"], "rft: update.rows_per_microbatch is 1: it must be a multiple"),
        (["--device", "t4", "--rft.model.remat", "all"], "--rft.model.remat is 'all'"),
        (["--device", "t4", "--pass-rate", "2"], "--pass-rate is 2.0: it must lie in"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(ROOT / "experiments" / "gsm8k_qwen2.5_0.5b.py")
    assert estimate.main([path, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("estimate: error: ")
    assert said in line


def test_settings_that_leave_the_vocabulary_open_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size is 0"):
        memory.vocabulary(config(replace(MODEL, vocab_size=0)))


def test_defaults_of_lengths() -> None:
    assert estimate.default_lengths(config()) == (4, 50)
    assert experiments.load(ROOT / "experiments" / "arithmetic.py")["sft"].rollout is None
