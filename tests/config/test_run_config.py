"""Malformed settings: each is refused with one line that names the field, the value, the remedy."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

import rft_jax.config
from rft_jax.config import (
    AlarmsConfig,
    CheckpointConfig,
    Config,
    CriticConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    Method,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PoolConfig,
    RefillConfig,
    ReplayConfig,
    RolloutConfig,
    SelectionConfig,
    TokenizerConfig,
    UpdateConfig,
    VerificationConfig,
)
from rft_jax.config.alarms import SIGNS
from rft_jax.config.serialize import replace_fields, section_types
from rft_jax.errors import ConfigError

TWICE = UpdateConfig(row_length=64, rows_per_microbatch=8, minibatches=2)


def grpo(**changes: Any) -> Config:
    """8 questions x 2 outputs; the method may be another."""
    rollout = RolloutConfig(questions_per_step=4, samples_per_question=2)
    return tiny.online_rft(**{"method": "grpo", "rollout": rollout} | changes)


MALFORMED: dict[str, tuple[Callable[[], object], str]] = {
    "template without question": (
        lambda: DataConfig(train="a", validation="b", prompt_template="Q:"),
        "data.prompt_template is 'Q:': it must hold {question} once.",
    ),
    "template with two questions": (
        lambda: DataConfig(train="a", validation="b", prompt_template="{question}{question}"),
        "data.prompt_template is '{question}{question}': it must hold {question} once.",
    ),
    "no room for a prompt": (
        lambda: DataConfig(train="a", validation="b", max_prompt_tokens=0),
        "data.max_prompt_tokens is 0: it must be at least 1.",
    ),
    "no room for an output": (
        lambda: DataConfig(train="a", validation="b", max_completion_tokens=-1),
        "data.max_completion_tokens is -1: it must be at least 1.",
    ),
    "system message of a text": (
        lambda: DataConfig(train="a", validation="b", system="Be brief."),
        "data.system does nothing under data.prompt_format=text: remove it or set "
        "data.prompt_format to chat.",
    ),
    "tokenizer of nowhere": (
        lambda: TokenizerConfig(path="hf:"),
        "tokenizer.path is 'hf:': a folder or ORG/NAME must follow it.",
    ),
    "tokenizer loaded and trained": (
        lambda: TokenizerConfig(path="t.model", corpus="jsonl:a"),
        "tokenizer.corpus and tokenizer.vocab_size train a new tokenizer and do nothing beside "
        "tokenizer.path: remove them or the path.",
    ),
    "tokenizer from nothing": (
        lambda: TokenizerConfig(),
        "tokenizer.path and tokenizer.corpus are both empty: name a tokenizer or a source to train "
        "one on.",
    ),
    "tokenizer too small": (
        lambda: TokenizerConfig(corpus="jsonl:a", vocab_size=260),
        "tokenizer.vocab_size is 260: it must exceed 260 (256 byte pieces and 4 special ones).",
    ),
    "tokenizer beyond what counts": (
        lambda: TokenizerConfig(corpus="jsonl:a", vocab_size=2**31),
        "tokenizer.vocab_size is 2147483648: it must be at most 2147483647.",
    ),
    "no layers": (
        lambda: ModelConfig(num_layers=0),
        "model.num_layers is 0: it must be at least 1.",
    ),
    "heads not divided": (
        lambda: ModelConfig(num_heads=4, num_kv_heads=3),
        "model.num_kv_heads is 3: it must divide model.num_heads, 4.",
    ),
    "odd head": (
        lambda: ModelConfig(head_dim=7),
        "model.head_dim is 7: rotary embeddings need an even width.",
    ),
    "date that is none": (
        lambda: DataConfig(train="a", validation="b", prompt_format="chat", date="26 Jul 2024"),
        "data.date is '26 Jul 2024': a date is expected, YYYY-MM-DD.",
    ),
    "date without a chat": (
        lambda: DataConfig(train="a", validation="b", date="2024-07-26"),
        "data.date does nothing under data.prompt_format=text: remove it or set data.prompt_format "
        "to chat.",
    ),
    "variables without a chat": (
        lambda: DataConfig(train="a", validation="b", template_variables=("a=1",)),
        "data.template_variables does nothing under data.prompt_format=text: remove it or set "
        "data.prompt_format to chat.",
    ),
    "no variable": (
        lambda: DataConfig(
            train="a", validation="b", prompt_format="chat", template_variables=("a",)
        ),
        "data.template_variables holds 'a': NAME=VALUE is expected, each name once.",
    ),
    "a variable twice": (
        lambda: DataConfig(
            train="a", validation="b", prompt_format="chat", template_variables=("a=1", "a=2")
        ),
        "data.template_variables holds 'a=1': NAME=VALUE is expected, each name once.",
    ),
    "a variable of the prompt": (
        lambda: DataConfig(
            train="a", validation="b", prompt_format="chat", template_variables=("messages=[]",)
        ),
        "data.template_variables sets messages, which prompts set themselves: remove it.",
    ),
    "window of nothing else": (
        lambda: ModelConfig(sliding_window=1),
        "model.sliding_window is 1: it must be 0 (none) or at least 2.",
    ),
    "global layers without a window": (
        lambda: ModelConfig(global_every=6),
        "model.global_every does nothing without model.sliding_window: remove it.",
    ),
    "local base without a window": (
        lambda: ModelConfig(local_rope_theta=1e4),
        "model.local_rope_theta does nothing without model.sliding_window: remove it.",
    ),
    "no base": (
        lambda: ModelConfig(rope_theta=0.0),
        "model.rope_theta is 0.0: it must be a positive number.",
    ),
    "scaling by nothing": (
        lambda: ModelConfig(rope_scaling="linear"),
        "model.rope_factor is 1.0: it must be above 1 with a model.rope_scaling, and does nothing "
        "without.",
    ),
    "scaling without its length": (
        lambda: ModelConfig(rope_scaling="llama3", rope_factor=8.0),
        "model.rope_original_positions is 0: it must be at least 1 with "
        "model.rope_scaling=llama3, and does nothing without.",
    ),
    "turns the wrong way round": (
        lambda: ModelConfig(
            rope_scaling="llama3", rope_factor=8.0, rope_original_positions=64, rope_low_turns=5.0
        ),
        "model.rope_low_turns and model.rope_high_turns are 5.0 and 4.0: with "
        "model.rope_scaling=llama3 the second must be the larger; they do nothing without.",
    ),
    "adapters of nothing": (
        lambda: ModelConfig(lora_rank=8, lora_alpha=16.0),
        "model.lora_targets is (): it is needed with a model.lora_rank, and does nothing without.",
    ),
    "scale of no adapters": (
        lambda: ModelConfig(lora_alpha=16.0),
        "model.lora_alpha is 16.0: it is needed with a model.lora_rank, and does nothing without.",
    ),
    "adapters of norms": (
        lambda: ModelConfig(lora_rank=8, lora_alpha=16.0, lora_targets=("q_proj",)),
        "model.lora_targets names 'q_proj': query, key, value, output, gate, up, down can be "
        "named.",
    ),
    "adapters twice": (
        lambda: ModelConfig(lora_rank=8, lora_alpha=16.0, lora_targets=("up", "up")),
        "model.lora_targets is ['up', 'up']: name each matrix once.",
    ),
    "adapters from nothing": (
        lambda: tiny.sft(model=tiny.model(lora_rank=8, lora_alpha=16.0, lora_targets=("up",))),
        "model.lora_rank is 8 and init_from is random: adapters need a model to adapt; name it as "
        "run:NAME, workdir:PATH or hf:PATH_OR_REPO.",
    ),
    "mesh axis of no device": (
        lambda: MeshConfig(fsdp=0),
        "mesh.fsdp is 0: it must be a positive size, or -1 to be inferred.",
    ),
    "two inferred axes": (
        lambda: MeshConfig(data=-1, tensor=-1),
        "mesh.data and mesh.tensor are both -1: only one axis can be inferred.",
    ),
    "rollout without questions": (
        lambda: RolloutConfig(questions_per_step=0),
        "rollout.questions_per_step is 0: it must be at least 1.",
    ),
    "greedy rollout": (
        lambda: RolloutConfig(temperature=0.0),
        "rollout.temperature is 0.0: training samples need one of at least 1e-06 (greedy outputs "
        "explore nothing).",
    ),
    "temperature that may fall to nothing": (
        lambda: RolloutConfig(temperature_target=1.0, temperature_step=1e-9),
        "rollout.temperature_step is 1e-09: it is also the lowest temperature, and must be at "
        "least 1e-06.",
    ),
    "infinite temperature": (
        lambda: tiny.rft(rollout=RolloutConfig(temperature=float("inf"))),
        "rollout.temperature is inf: it must be a finite number, of float32.",
    ),
    "a temperature's target without a step": (
        lambda: RolloutConfig(temperature_target=0.5),
        "rollout.temperature_target and rollout.temperature_step are 0.5 and 0.0: give positive "
        "numbers, or leave all of them at 0.",
    ),
    "a falling temperature": (
        lambda: RolloutConfig(temperature_target=0.5, temperature_step=-0.1),
        "rollout.temperature_target and rollout.temperature_step are 0.5 and -0.1: give positive "
        "numbers, or leave all of them at 0.",
    ),
    "a temperature that no rollout moves": (
        lambda: tiny.rft(rollout=RolloutConfig(temperature_target=0.5, temperature_step=0.1)),
        "rollout.temperature_target is 0.5: it follows the entropy of the policy's rollouts, and "
        "method rft has none: set it to 0.",
    ),
    "a bonus that no rollout moves": (
        lambda: tiny.sft(objective=ObjectiveConfig(entropy_target=0.2, entropy_step=0.005)),
        "objective.entropy_target is 0.2: it follows the entropy of the policy's rollouts, and "
        "method sft has none: set it to 0.",
    ),
    "an entropy's step without a target": (
        lambda: ObjectiveConfig(entropy_coefficient=0.1, entropy_step=0.005),
        "objective.entropy_target and objective.entropy_step are 0.0 and 0.005: give positive "
        "numbers, or leave all of them at 0.",
    ),
    "a malus": (
        lambda: ObjectiveConfig(entropy_coefficient=-0.1),
        "objective.entropy_coefficient is -0.1: it must be 0 or more.",
    ),
    "replay of nothing": (
        lambda: ReplayConfig(sequences_per_step=0, weight=0.1),
        "replay.sequences_per_step is 0: it must be at least 1.",
    ),
    "replay without weight": (
        lambda: ReplayConfig(sequences_per_step=2, weight=0.0),
        "replay.weight is 0.0: it must be a positive number; without replay leave the section out.",
    ),
    "replay of two kinds": (
        lambda: ReplayConfig(2, 0.1, source="jsonl:a", from_rollouts=("b",)),
        "replay.source is 'jsonl:a' and replay.from_rollouts is ['b']: give one of them, or none "
        "for the demonstrations of data.train.",
    ),
    "replay beside demonstrations": (
        lambda: tiny.sft(replay=ReplayConfig(2, 0.1)),
        "replay is beside the policy's own samples: method sft has none; remove it.",
    ),
    "empty pool": (
        lambda: PoolConfig(),
        "pool.rollout_steps is 0 and pool.from_rollouts is []: give exactly one of them.",
    ),
    "pool from both": (
        lambda: PoolConfig(rollout_steps=2, from_rollouts=("a",)),
        "pool.rollout_steps is 2 and pool.from_rollouts is ['a']: give exactly one of them.",
    ),
    "a log that is sampled again": (
        lambda: PoolConfig(from_rollouts=("a",), every_steps=2),
        "pool.every_steps is 2 and pool.from_rollouts is ['a']: a log is read once; set "
        "pool.every_steps to 0.",
    ),
    "only pool from the start": (
        lambda: PoolConfig(rollout_steps=2, sampled_from="start"),
        "pool.sampled_from is 'start' and does nothing, as the only pool is always the start's "
        "(pool.every_steps is 0): remove it.",
    ),
    "pool after the end": (
        lambda: tiny.rft(pool=PoolConfig(rollout_steps=2, every_steps=tiny.rft().steps)),
        f"pool.every_steps is {tiny.rft().steps}: another pool is sampled before the last of "
        f"{tiny.rft().steps} steps, or none: lower it, or set it to 0.",
    ),
    "KL of outputs of a pool": (
        lambda: tiny.rft(objective=ObjectiveConfig(kl_outputs=4)),
        "objective.kl_outputs is 4: it counts outputs of the policy's own rollouts: it must be 0 "
        "under method rft.",
    ),
    "negative cap": (
        lambda: SelectionConfig(max_per_question=-1),
        "selection.max_per_question is -1: 0 (no cap) or more is needed.",
    ),
    "negative KL": (
        lambda: ObjectiveConfig(kl_coefficient=-0.1),
        "objective.kl_coefficient is -0.1: 0 or more is needed.",
    ),
    "empty rows": (
        lambda: UpdateConfig(row_length=0),
        "update.row_length is 0: it must be at least 1.",
    ),
    "negative sequences": (
        lambda: UpdateConfig(sequences_per_step=-1),
        "update.sequences_per_step is -1: it must be 0 or more.",
    ),
    "learning rate not a number": (
        lambda: OptimizerConfig(learning_rate=float("nan")),
        "optimizer.learning_rate is nan: it must be a positive number.",
    ),
    "final fraction of a constant": (
        lambda: OptimizerConfig(final_fraction=0.1),
        "optimizer.final_fraction does nothing under a constant schedule: remove it or choose "
        "cosine or linear.",
    ),
    "negative clipping": (
        lambda: OptimizerConfig(clip_norm=-1.0),
        "optimizer.clip_norm is -1.0: it must be 0 or more.",
    ),
    "no decay of moments": (
        lambda: OptimizerConfig(b2=1.0),
        "optimizer.b2 is 1.0: it must lie in [0, 1), in float32 too.",
    ),
    "no decay of moments in float32": (
        lambda: OptimizerConfig(b1=1 - 1e-9),
        "optimizer.b1 is 0.999999999: it must lie in [0, 1), in float32 too.",
    ),
    "nothing added to the second moment": (
        lambda: OptimizerConfig(eps=0.0),
        "optimizer.eps is 0.0: it must be at least 1.1754943508222875e-38.",
    ),
    "nothing of float32 added to the second moment": (
        lambda: OptimizerConfig(eps=1e-45),
        "optimizer.eps is 1e-45: it must be at least 1.1754943508222875e-38.",
    ),
    "negative weight decay": (
        lambda: OptimizerConfig(weight_decay=-0.1),
        "optimizer.weight_decay is -0.1: it must be 0 or more.",
    ),
    "too many layers": (
        lambda: tiny.model(num_layers=10**9),
        "model.num_layers is 1000000000: it must be at most 10000.",
    ),
    "too large a matrix": (
        lambda: tiny.model(vocab_size=10**12),
        "model.d_model is 16, and the largest of model.mlp_dim, model.vocab_size and "
        "model.num_heads x model.head_dim is 1000000000000: a matrix of both may have at most "
        "1099511627776 numbers.",
    ),
    "letters of other layers": (
        lambda: tiny.model(sliding_window=4, layer_types="fs?"),
        "model.layer_types is 'fs?': it must have a letter, f or s, for each of model.num_layers, "
        "2.",
    ),
    "two orders of layers": (
        lambda: tiny.model(sliding_window=4, layer_types="fs", global_every=2),
        "model.global_every is 2 and model.layer_types is given: give one.",
    ),
    "nothing added to the mean square": (
        lambda: tiny.model(norm_eps=0.0),
        "model.norm_eps is 0.0: it must be at least 1.1754943508222875e-38.",
    ),
    "no verifier process": (
        lambda: VerificationConfig(workers=0),
        "verification.workers is 0: it must be at least 1.",
    ),
    "no time to verify": (
        lambda: VerificationConfig(timeout_seconds=0.0),
        "verification.timeout_seconds is 0.0: it must be positive.",
    ),
    "negative period": (
        lambda: EvaluationConfig(every_steps=-1),
        "evaluation.every_steps is -1: it must be 0 or more.",
    ),
    "empty evaluation batch": (
        lambda: EvaluationConfig(questions_per_batch=0),
        "evaluation.questions_per_batch is 0: it must be at least 1.",
    ),
    "greedy evaluation samples": (
        lambda: EvaluationConfig(temperature=0.0),
        "evaluation.temperature is 0.0: it must be at least 1e-06 (greedy accuracy is always "
        "measured).",
    ),
    "no checkpoint kept": (
        lambda: CheckpointConfig(keep=0),
        "checkpoint.keep is 0: it must be at least 1.",
    ),
    "negative time between saves": (
        lambda: CheckpointConfig(every_minutes=-1.0),
        "checkpoint.every_minutes is -1.0: 0 (never) or more is needed.",
    ),
    "endless time between saves": (
        lambda: tiny.sft(checkpoint=CheckpointConfig(every_minutes=float("inf"))),
        "checkpoint.every_minutes is inf: it must be a finite number, of float32.",
    ),
    "fewer than no best": (
        lambda: CheckpointConfig(keep_best=-1),
        "checkpoint.keep_best is -1: it must be 0 or more.",
    ),
    "best of nothing": (
        lambda: tiny.sft(checkpoint=CheckpointConfig(keep_best=1)),
        "checkpoint.keep_best is 1 and no step is evaluated, as evaluation.every_steps is 0 and "
        "steps is 3: evaluate, or remove checkpoint.keep_best.",
    ),
    "best of the start alone": (
        lambda: tiny.sft(
            checkpoint=CheckpointConfig(every_steps=1, keep_best=1),
            evaluation=EvaluationConfig(every_steps=4),
        ),
        "checkpoint.keep_best is 1 and no step is evaluated, as evaluation.every_steps is 4 and "
        "steps is 3: evaluate, or remove checkpoint.keep_best.",
    ),
    "best of what is not saved": (
        lambda: tiny.sft(
            checkpoint=CheckpointConfig(every_steps=2, keep_best=2),
            evaluation=EvaluationConfig(every_steps=1),
        ),
        "checkpoint.keep_best is 2 and not every step that is evaluated is saved: "
        "evaluation.every_steps, 1, must be a multiple of checkpoint.every_steps, 2.",
    ),
    "a measure that is none": (
        lambda: CheckpointConfig(measure="greedy/accuracy+pass@4"),
        "checkpoint.measure is 'greedy/accuracy+pass@4': greedy/accuracy, pass_at/K, or several "
        "joined by + are expected.",
    ),
    "a measure of nothing": (
        lambda: tiny.sft(
            checkpoint=CheckpointConfig(measure="pass_at/2"),
            evaluation=EvaluationConfig(every_steps=1, samples_per_question=2),
        ),
        "checkpoint.measure is 'pass_at/2' and nothing is judged by it: set checkpoint.keep_best "
        "or alarms.patience, or remove it.",
    ),
    "a measure of other samples": (
        lambda: tiny.sft(
            checkpoint=CheckpointConfig(every_steps=1, keep_best=1, measure="pass_at/3"),
            evaluation=EvaluationConfig(every_steps=1, samples_per_question=4),
        ),
        "checkpoint.measure is 'pass_at/3': evaluation.samples_per_question is 4, and pass@3 is "
        "measured for K = 1, 2, 4, ... and that number.",
    ),
    "alarms that end in no best": (
        lambda: tiny.sft(alarms=AlarmsConfig(action="best")),
        "alarms.action is 'best', and no best checkpoint is kept: set checkpoint.keep_best to 1 "
        "or more.",
    ),
    "patience without evaluations": (
        lambda: tiny.sft(alarms=AlarmsConfig(patience=3)),
        "alarms.patience is 3 and no step is evaluated, as evaluation.every_steps is 0 and steps "
        "is 3: evaluate, or set it to 0.",
    ),
    "patience that does nothing": (
        lambda: AlarmsConfig(patience=3, action="off"),
        "alarms.patience is 3, which does nothing under alarms.action=off: set it to 0, or have "
        "it warn, stop or best.",
    ),
    "an action without alarms": (
        lambda: AlarmsConfig(action="stop", **dict.fromkeys(SIGNS, 0.0)),
        "alarms.action is 'stop', and every alarm is switched off: set it to off, or a threshold "
        "above 0.",
    ),
    "a share above one": (
        lambda: AlarmsConfig(forgetting=25),
        "alarms.forgetting is 25: it is a share, and must be below 1.",
    ),
    "entropy that need not rise": (
        lambda: AlarmsConfig(entropy=0.5),
        "alarms.entropy is 0.5: it is over the start's, and must be above 1, or 0 for no such "
        "alarm.",
    ),
    "a window of one step": (
        lambda: AlarmsConfig(window=1),
        "alarms.window is 1: it must be at least 2.",
    ),
    "no steps": (
        lambda: tiny.sft(steps=0),
        "steps is 0: a run makes at least one update.",
    ),
    "more steps than devices count to": (
        lambda: tiny.sft(steps=2**31),
        "steps is 2147483648: it must be at most 2147483647.",
    ),
    "longer outputs than devices count to": (
        lambda: DataConfig("a", "b", max_completion_tokens=2**31),
        "data.max_completion_tokens is 2147483648: it must be at most 2147483647.",
    ),
    "infinite eps": (
        lambda: OptimizerConfig(eps=math.inf),
        "optimizer.eps is inf: it must be at most 2147483647.",
    ),
    "negative seed": (
        lambda: tiny.sft(seed=-1),
        "seed is -1: it must lie between 0 and 2147483647.",
    ),
    "unknown start": (
        lambda: tiny.sft(init_from="sft"),
        "init_from is 'sft': it must be random, run:NAME, workdir:PATH or hf:PATH_OR_REPO.",
    ),
    "start without a name": (
        lambda: tiny.rft(init_from="run:"),
        "init_from is 'run:': it must be random, run:NAME, workdir:PATH or hf:PATH_OR_REPO.",
    ),
    "rollout missing": (
        lambda: tiny.online_rft(rollout=None),
        "rollout is missing: method online_rft needs it.",
    ),
    "rollout under sft": (
        lambda: tiny.sft(rollout=RolloutConfig()),
        "rollout does nothing under method sft: remove it.",
    ),
    "rollout beside a log": (
        lambda: tiny.rft(pool=PoolConfig(from_rollouts=("runs/a/rft/rollouts",))),
        "rollout does nothing under method rft from a rollout log: remove it.",
    ),
    "pool missing": (
        lambda: tiny.rft(pool=None),
        "pool is missing: method rft needs it.",
    ),
    "pool under online_rft": (
        lambda: tiny.online_rft(pool=PoolConfig(rollout_steps=1)),
        "pool does nothing under method online_rft: remove it.",
    ),
    "selection missing": (
        lambda: tiny.rft(selection=None),
        "selection is missing: method rft needs it.",
    ),
    "sequences under online_rft": (
        lambda: tiny.online_rft(
            update=UpdateConfig(row_length=64, rows_per_microbatch=8, sequences_per_step=4)
        ),
        "update.sequences_per_step is 4: it must be 0 for a method whose source is the policy (the "
        "rollout decides) and at least 1 for others.",
    ),
    "denominator of accepted ones, trained on all": (
        lambda: grpo(objective=ObjectiveConfig("accepted")),
        "objective.denominator is 'accepted': method grpo trains on incorrect outputs too; choose "
        "sampled, tokens or constant.",
    ),
    "denominator per question, trained on all": (
        lambda: grpo(objective=ObjectiveConfig("accepted_per_question")),
        "objective.denominator is 'accepted_per_question': method grpo trains on incorrect outputs "
        "too; choose sampled, tokens or constant.",
    ),
    "a length that does not count": (
        lambda: grpo(objective=ObjectiveConfig(constant_length=5)),
        "objective.constant_length is 5 and does nothing under the denominator 'sampled': set it "
        "to 0.",
    ),
    "a negative length": (
        lambda: ObjectiveConfig(constant_length=-1),
        "objective.constant_length is -1: it must be 0 or more.",
    ),
    "a clip without a ratio": (
        lambda: tiny.online_rft(objective=ObjectiveConfig(clip_high=0.2)),
        "objective.clip_high is 0.2: method online_rft has no importance ratio: remove it.",
    ),
    "a clip under sft": (
        lambda: tiny.sft(objective=ObjectiveConfig(clip_low=0.2)),
        "objective.clip_low is 0.2: method sft has no importance ratio: remove it.",
    ),
    "a clip with one update a rollout": (
        lambda: grpo(objective=ObjectiveConfig(clip_low=0.2)),
        "objective.clip_low is 0.2 and does nothing, as each rollout is for one update, of the "
        "policy that sampled it: remove it, or raise update.minibatches or update.epochs.",
    ),
    "a dual clip with one update a rollout": (
        lambda: grpo(objective=ObjectiveConfig(dual_clip=3.0)),
        "objective.dual_clip is 3.0 and does nothing, as each rollout is for one update, of the "
        "policy that sampled it: remove it, or raise update.minibatches or update.epochs.",
    ),
    "a negative clip": (
        lambda: ObjectiveConfig(clip_high=-0.1),
        "objective.clip_high is -0.1: it must be 0 or more.",
    ),
    "a clip below 0": (
        lambda: grpo(update=TWICE, objective=ObjectiveConfig(clip_low=1.5)),
        "the ratio's lower clip is 1.5: it must lie in [0, 1].",
    ),
    "a dual clip within the clip": (
        lambda: grpo(update=TWICE, objective=ObjectiveConfig(dual_clip=1.1)),
        "the ratio's dual clip is 1.1: it bounds a clipped ratio from beyond 1 + 0.2, its upper "
        "clip; 0 sets none.",
    ),
    "a dual clip of a weight": (
        lambda: grpo(method="cispo", update=TWICE, objective=ObjectiveConfig(dual_clip=9.0)),
        "the ratio's dual clip is 9.0: it bounds a clipped ratio from beyond 1 + 4.0, its upper "
        "clip; 0 sets none.",
    ),
    "an importance cap below 1": (
        lambda: ObjectiveConfig(importance_cap=0.5),
        "objective.importance_cap is 0.5: it must be at least 1, the weight of a token on which "
        "sampler and trainer agree, or 0 for no weight.",
    ),
    "an importance cap beside a ratio": (
        lambda: grpo(update=TWICE, objective=ObjectiveConfig(importance_cap=2.0)),
        "objective.importance_cap is 2.0: it acts on rollouts of the policy whose method has no "
        "importance ratio of its own (method grpo): set it to 0.",
    ),
    "importance of outputs that are carried over": (
        lambda: tiny.online_rft(
            refill=RefillConfig(accepted=4, max_sampled=8, max_staleness=1),
            objective=ObjectiveConfig(importance_cap=2.0),
        ),
        "objective.importance_cap is 2.0 and refill.max_staleness is 1: outputs that are carried "
        "over have no log-probs of their policy; set one of them to 0.",
    ),
    "an importance cap of a pool": (
        lambda: tiny.rft(objective=ObjectiveConfig(importance_cap=2.0)),
        "objective.importance_cap is 2.0: it acts on rollouts of the policy whose method has no "
        "importance ratio of its own (method rft): set it to 0.",
    ),
    "an estimator of no KL": (
        lambda: ObjectiveConfig(kl_estimator="k1"),
        "objective.kl_estimator is 'k1' and does nothing, as objective.kl_coefficient is 0: raise "
        "it, or remove the estimator.",
    ),
    "more minibatches than outputs": (
        lambda: grpo(update=replace(tiny.online_rft().update, minibatches=9)),
        "update.minibatches is 9: a step trains on at most 8 outputs, so that it must be 8 or "
        "less.",
    ),
    "more minibatches than groups": (
        lambda: grpo(method="online_dpo", update=replace(tiny.online_rft().update, minibatches=5)),
        "update.minibatches is 5: a step trains on at most 4 questions, so that it must be 4 or "
        "less.",
    ),
    "PPO without a value function": (
        lambda: grpo(method="ppo"),
        "critic is missing: method ppo needs it.",
    ),
    "a value function that nobody asks": (
        lambda: grpo(critic=CriticConfig()),
        "critic does nothing under method grpo: remove it.",
    ),
    "a lambda above 1": (
        lambda: CriticConfig(gae_lambda=1.5),
        "critic.gae_lambda is 1.5: it must lie in [0, 1].",
    ),
    "a value function that does not learn": (
        lambda: CriticConfig(learning_rate=0.0),
        "critic.learning_rate is 0.0: it must be a positive number.",
    ),
    "a KL of no weight in the reward": (
        lambda: ObjectiveConfig(kl_in="reward"),
        "objective.kl_in is 'reward' and does nothing, as objective.kl_coefficient is 0: raise it, "
        "or remove kl_in.",
    ),
    "a KL in the reward of a row without rewards": (
        lambda: tiny.online_rft(objective=ObjectiveConfig(kl_coefficient=0.1, kl_in="reward")),
        "objective.kl_in is 'reward': method online_rft reads no rewards; choose loss.",
    ),
    "a KL in the reward of steps": (
        lambda: grpo(
            method="grpo_process",
            objective=ObjectiveConfig(kl_coefficient=0.1, kl_in="reward"),
            verification=VerificationConfig(verifier="my:checker"),
        ),
        "objective.kl_in is 'reward': method grpo_process reads the rewards of steps, which no KL "
        "is taken from; choose loss.",
    ),
    "values of a pool": (
        lambda: Method("pool", "decided", lambda facts: facts.advantages, values=True),
        "Method.values is True and its source is 'pool': the source must be policy.",
    ),
    "log-ratios of demonstrations": (
        lambda: Method("demonstrations", "accepted", lambda facts: facts.rewards, log_ratios=True),
        "Method.log_ratios is True and its source is 'demonstrations': the source must be pool or "
        "policy.",
    ),
    "a KL in the reward of accepted outputs": (
        lambda: grpo(
            method="maxrl_positive", objective=ObjectiveConfig(kl_coefficient=0.1, kl_in="reward")
        ),
        "objective.kl_in is 'reward': every decided output then has a reward, and method "
        "maxrl_positive trains on accepted ones only; choose loss.",
    ),
    "carried outputs of a value function": (
        lambda: grpo(
            method="ppo",
            critic=CriticConfig(),
            refill=RefillConfig(accepted=4, max_sampled=8, max_staleness=1),
        ),
        "refill.max_staleness is 1: outputs are carried over with one coefficient each, and those "
        "of method ppo differ from token to token; set it to 0.",
    ),
    "a dual clip of accepted outputs": (
        lambda: grpo(method="raft++", update=TWICE, objective=ObjectiveConfig(dual_clip=3.0)),
        "objective.dual_clip is 3.0: it bounds the ratio of negative coefficients, and method "
        "raft++ trains on accepted outputs only: remove it.",
    ),
    "more updates of a rollout than steps": (
        lambda: grpo(update=replace(TWICE, epochs=2)),
        "update.minibatches x update.epochs is 4: the first rollout is for more updates than "
        "steps, 3: lower them, or raise steps.",
    ),
    "no reference to renew": (
        lambda: grpo(objective=ObjectiveConfig(reference_every=2)),
        "objective.reference_every is 2: method grpo has no pi_ref to renew without "
        "objective.kl_coefficient, or does not sample from the policy: set it to 0.",
    ),
    "a reference renewed within a rollout": (
        lambda: grpo(
            update=TWICE, objective=ObjectiveConfig(kl_coefficient=0.1, reference_every=3)
        ),
        "objective.reference_every is 3: pi_ref is renewed between rollouts, so it must be a "
        "multiple of update.minibatches x update.epochs, 2.",
    ),
    "a reference renewed after the end": (
        lambda: grpo(objective=ObjectiveConfig(kl_coefficient=0.1, reference_every=1000)),
        "objective.reference_every is 1000: pi_ref is renewed before the last of 3 steps, or not "
        "at all: lower it, or set it to 0.",
    ),
    "a KL beside DPO's own": (
        lambda: grpo(method="online_dpo", objective=ObjectiveConfig(kl_coefficient=0.1)),
        "objective.kl_coefficient is 0.1: the coefficient of method online_dpo holds pi_theta / "
        "pi_ref itself: set it to 0.",
    ),
    "an importance cap beside DPO's": (
        lambda: grpo(method="online_dpo", objective=ObjectiveConfig(importance_cap=2.0)),
        "objective.importance_cap is 2.0: the coefficient of method online_dpo holds pi_theta / "
        "pi_ref itself: set it to 0.",
    ),
    "pairs cut by a batch": (
        lambda: grpo(method="online_dpo", refill=RefillConfig(accepted=4, max_sampled=8)),
        "refill.accepted cuts groups, and method online_dpo compares the outputs of one: fill up "
        "with refill.mixed_groups.",
    ),
    "minibatches of demonstrations": (
        lambda: tiny.sft(update=replace(TWICE, sequences_per_step=4)),
        "update.minibatches is 2: it splits or repeats a rollout of the policy, and method sft has "
        "none: set it to 1.",
    ),
    "epochs of a pool": (
        lambda: tiny.rft(update=replace(TWICE, minibatches=1, epochs=3, sequences_per_step=4)),
        "update.epochs is 3: it splits or repeats a rollout of the policy, and method rft has "
        "none: set it to 1.",
    ),
    "no minibatch": (
        lambda: UpdateConfig(minibatches=0),
        "update.minibatches is 0: it must be at least 1.",
    ),
    "no epoch": (
        lambda: UpdateConfig(epochs=0),
        "update.epochs is 0: it must be at least 1.",
    ),
    "a group of one": (
        lambda: grpo(rollout=RolloutConfig(questions_per_step=8, samples_per_question=1)),
        "rollout.samples_per_question is 1: method grpo compares the outputs of a question; sample "
        "at least 2.",
    ),
    "leave one out of one": (
        lambda: grpo(
            method="rloo", rollout=RolloutConfig(questions_per_step=8, samples_per_question=1)
        ),
        "rollout.samples_per_question is 1: method rloo compares the outputs of a question; sample "
        "at least 2.",
    ),
    "a ratio with carried outputs": (
        lambda: grpo(update=TWICE, refill=RefillConfig(accepted=4, max_sampled=8, max_staleness=1)),
        "refill.max_staleness is 1 and a rollout is for 2 updates (update.minibatches x "
        "update.epochs): outputs that are carried over wait longer than they may, and have no "
        "log-probs of their policy; set it to 0.",
    ),
    "carried outputs with several updates": (
        lambda: tiny.online_rft(
            update=TWICE, refill=RefillConfig(accepted=4, max_sampled=8, max_staleness=1)
        ),
        "refill.max_staleness is 1 and a rollout is for 2 updates (update.minibatches x "
        "update.epochs): outputs that are carried over wait longer than they may, and have no "
        "log-probs of their policy; set it to 0.",
    ),
    "refill until nothing": (
        lambda: RefillConfig(max_sampled=8),
        "refill.accepted is 0 and refill.mixed_groups is 0: give one of them, at least 1.",
    ),
    "refill until two things": (
        lambda: RefillConfig(accepted=4, mixed_groups=4, max_sampled=8),
        "refill.accepted is 4 and refill.mixed_groups is 4: give one of them, at least 1.",
    ),
    "carried groups": (
        lambda: RefillConfig(mixed_groups=4, max_sampled=8, max_staleness=1),
        "refill.max_staleness is 1: only outputs kept beyond refill.accepted are carried over, and "
        "refill.mixed_groups is given: set it to 0.",
    ),
    "more groups than questions": (
        lambda: grpo(refill=RefillConfig(mixed_groups=9, max_sampled=16)),
        "refill.mixed_groups is 9: refill.max_sampled = 16 outputs are of 8 questions: lower it or "
        "raise refill.max_sampled.",
    ),
    "mixed groups of one": (
        lambda: tiny.online_rft(
            rollout=RolloutConfig(questions_per_step=8, samples_per_question=1),
            refill=RefillConfig(mixed_groups=4, max_sampled=8),
        ),
        "refill.mixed_groups is 4 and rollout.samples_per_question is 1: a mixed group has at "
        "least 2 outputs.",
    ),
    "TOPR from the policy's settings": (
        lambda: grpo(method="topr"),
        "pool is missing: method topr needs it.",
    ),
    "KL under sft": (
        lambda: tiny.sft(objective=ObjectiveConfig(kl_coefficient=0.1)),
        "objective.kl_coefficient acts on the policy's own samples: it must be 0 under method sft.",
    ),
    "RFT from nothing": (
        lambda: tiny.rft(init_from="random"),
        "init_from is random: method rft starts from a supervised model; name it as run:NAME, "
        "workdir:PATH or hf:PATH_OR_REPO.",
    ),
    "refill from the future": (
        lambda: RefillConfig(accepted=1, max_sampled=8, max_staleness=-1),
        "refill.max_staleness is -1: it must be 0 or more.",
    ),
    "refill under rft": (
        lambda: tiny.rft(refill=RefillConfig(accepted=1, max_sampled=8)),
        "refill does nothing under method rft: remove it.",
    ),
    "refill with KL": (
        lambda: tiny.online_rft(
            refill=RefillConfig(accepted=1, max_sampled=8),
            objective=ObjectiveConfig(kl_coefficient=0.5),
        ),
        "objective.kl_coefficient is 0.5: the KL is over every output of the policy, and refill "
        "keeps accepted ones: set it to 0 or remove refill.",
    ),
    "refill of less than a round": (
        lambda: tiny.online_rft(refill=RefillConfig(accepted=1, max_sampled=7)),
        "refill.max_sampled is 7: it must be a multiple of one round, rollout.questions_per_step x "
        "rollout.samples_per_question = 8, such as 8.",
    ),
    "refill of part of a round": (
        lambda: tiny.online_rft(refill=RefillConfig(accepted=1, max_sampled=30)),
        "refill.max_sampled is 30: it must be a multiple of one round, rollout.questions_per_step "
        "x rollout.samples_per_question = 8, such as 24.",
    ),
    "refill never full": (
        lambda: tiny.online_rft(refill=RefillConfig(accepted=17, max_sampled=16)),
        "refill.accepted is 17: of refill.max_sampled = 16 outputs, 2 of each question, at most 16 "
        "are kept: lower it or raise refill.max_sampled.",
    ),
    "refill never full under the cap": (
        lambda: tiny.online_rft(
            refill=RefillConfig(accepted=9, max_sampled=16),
            selection=SelectionConfig(max_per_question=1),
        ),
        "refill.accepted is 9: of refill.max_sampled = 16 outputs, 1 of each question, at most 8 "
        "are kept: lower it or raise refill.max_sampled.",
    ),
    "row too short": (
        lambda: tiny.sft(update=UpdateConfig(row_length=63, sequences_per_step=1)),
        "update.row_length is 63: a row must hold the longest prompt and output, "
        "data.max_prompt_tokens + data.max_completion_tokens = 64.",
    ),
    "warm-up without end": (
        lambda: tiny.sft(optimizer=OptimizerConfig(warmup_steps=3)),
        "optimizer.warmup_steps is 3: it must be below steps, 3.",
    ),
}


@pytest.mark.parametrize(("make", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_setting_is_refused_in_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), -1e39, 10**400],
    ids=["nan", "inf", "no float32", "no float"],
)
def test_every_number_is_finite_in_float32(value: float) -> None:
    """Whatever bounds its section has."""
    base = tiny.rft()
    names = [
        (name, item.name)
        for name, kind in section_types().items()
        for item in dataclasses.fields(kind)
        if item.type == "float" and getattr(base, name) is not None
    ]
    assert len(names) > 15
    for name, field in names:
        with pytest.raises(ConfigError, match=rf"^{name}\."):
            replace_fields(base, {f"{name}.{field}": value})


def test_a_config_is_hashable_and_frozen() -> None:
    config = tiny.online_rft()
    assert hash(config) == hash(tiny.online_rft())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 4  # type: ignore[misc]


def test_rft_from_a_log_needs_no_rollout() -> None:
    pool = PoolConfig(from_rollouts=("runs/a/rft/rollouts",))
    config = tiny.rft(pool=pool, rollout=None)
    assert config.pool is pool


def test_every_field_has_a_doc() -> None:
    """`--help` shows them; the sections of a Config have the doc of their class."""
    undocumented = []
    files = Path(rft_jax.config.__file__).parent.glob("*.py")
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    classes = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    configs = [node for node in classes if node.name.endswith("Config")]
    assert {node.name for node in configs} > {kind.__name__ for kind in section_types().values()}
    for node in configs:
        for field, after in itertools.pairwise([*node.body, None]):
            if isinstance(field, ast.AnnAssign):
                doc = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                name = ast.unparse(field.target)
                if not doc and name not in section_types():
                    undocumented.append(name)
    assert undocumented == []


def test_values_of_template_variables() -> None:
    texts = ("a=true", "b=False", "c=3", 'd="x=y"', "e=low", "f=[1, null]", "g=", "h=1 2")
    data = DataConfig(train="a", validation="b", prompt_format="chat", template_variables=texts)
    assert data.variables == {
        "a": True, "b": False, "c": 3, "d": "x=y", "e": "low", "f": [1, None], "g": "", "h": "1 2",
    }  # fmt: skip


def test_the_default_prompt_of_a_format() -> None:
    text = DataConfig(train="a", validation="b")
    chat = dataclasses.replace(text, prompt_format="chat")
    assert (text.message("1+1?"), chat.message("1+1?")) == ("1+1?\n", "1+1?")
