"""Gradients of the methods against TRL's losses, on the same weights, outputs and log-probs.

    pip install trl accelerate datasets
    python -m benchmarks.trl_parity

TRL's own code computes the loss (GRPOTrainer and RLOOTrainer, `_compute_loss`) from the log-probs
of a small transformers model in float64; ours is the update's gradient of the same weights. pi_old
is another policy than pi_theta, so that ratios differ from 1 and bounds act. Both are compared as
whole gradients: |ours - theirs| / |theirs|.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np

from rft_jax.config import Denominator, MeshConfig, Method
from rft_jax.config.method import Ratio
from rft_jax.distributed.mesh import make_mesh
from rft_jax.hub.families import model_of
from rft_jax.hub.load import load_params
from rft_jax.hub.weights import open_weights
from rft_jax.training.methods import METHODS, grpo
from rft_jax.training.objective import output_weights
from rft_jax.training.packing import TrainingSequence, pack
from rft_jax.training.selection import coefficients
from rft_jax.training.state import param_shapes
from rft_jax.training.update import Terms, gradients
from rft_jax.types import Facts, Params

QUESTIONS, GROUP, PROMPT, LONGEST, VOCABULARY = 4, 6, 5, 9, 96
EPSILON = 1e-4
"""That TRL adds to a group's standard deviation."""


class Case(NamedTuple):
    """A row of ours, and the settings of TRL that stand for it."""

    row: Method
    trainer: str
    loss_type: str
    level: str
    denominator: Denominator
    ratio: Ratio


def _cases() -> dict[str, Case]:
    plain, wide = Ratio(low=0.2, high=0.2), Ratio(low=0.2, high=0.28)
    tight = Ratio("sequence", low=3e-4, high=4e-4)
    weight = Ratio(how="weight", low=1.0, high=0.5)  # TRL's bound is 1.5, not 1 + 1.5
    by_output = Ratio("output", low=0.2, high=0.2)
    scaled = grpo(epsilon=EPSILON)
    return {
        "grpo": Case(scaled, "grpo", "grpo", "token", "sampled", plain),
        "dr_grpo": Case(METHODS["dr_grpo"], "grpo", "dr_grpo", "token", "constant", plain),
        "dapo, no overlong": Case(scaled, "grpo", "dapo", "token", "tokens", wide),
        "gspo": Case(scaled, "grpo", "grpo", "sequence", "sampled", tight),
        "cispo": Case(scaled, "grpo", "cispo", "token", "tokens", weight),
        "rloo": Case(METHODS["rloo"], "rloo", "", "", "constant", by_output),
    }


class Outputs(NamedTuple):
    """lengths, rewards [B]; prompts [B, P]; completions, old_log_probs [B, T], zero after an
    output's end."""

    prompts: np.ndarray
    completions: np.ndarray
    lengths: np.ndarray
    rewards: np.ndarray
    old_log_probs: np.ndarray


def _facts(outputs: Outputs) -> Facts:
    return Facts(
        question_ids=np.repeat(np.arange(QUESTIONS), GROUP),
        correct=outputs.rewards > 0,
        rewards=outputs.rewards.astype(np.float32),
        lengths=outputs.lengths,
        finished=np.ones(QUESTIONS * GROUP, bool),
        log_probs=outputs.old_log_probs.sum(-1),
        limit=LONGEST,
    )


def _ours(case: Case, outputs: Outputs, params: Params, config: Any) -> Params:
    facts = _facts(outputs)
    constant_length = 1 if case.trainer == "rloo" else LONGEST
    weights = coefficients(case.row, facts) * output_weights(
        facts.question_ids, facts.lengths, denominator=case.denominator,
        num_sampled=len(facts.lengths), num_questions=QUESTIONS,
        num_tokens=int(facts.lengths.sum()), constant_length=constant_length,
    ).astype(np.float64)  # fmt: skip
    sequences = [
        TrainingSequence(
            outputs.prompts[n].tolist(), outputs.completions[n, :size].tolist(), float(weights[n]),
            log_probs=outputs.old_log_probs[n, :size].tolist(),
        )
        for n, size in enumerate(outputs.lengths)
    ]  # fmt: skip
    batch = pack(
        sequences, row_length=2 * (PROMPT + LONGEST), rows_per_microbatch=4, max_microbatches=8
    )
    exact = batch._replace(
        weights=batch.weights.astype(np.float64),
        sampler_log_probs=batch.sampler_log_probs.astype(np.float64),
    )
    found = jax.jit(
        functools.partial(gradients, config=config, terms=Terms(ratio=case.ratio), chunk=64)
    )(params, None, exact, np.float64(1.0))
    return found.gradients


def _log_probs(model: Any, prompts: Any, completions: Any) -> Any:
    import torch

    logits = model(torch.cat([prompts, completions], 1)).logits[:, PROMPT - 1 : -1]
    return logits.log_softmax(-1).gather(-1, completions[..., None])[..., 0]


def _theirs(case: Case, outputs: Outputs, model: Any) -> None:
    """Leave TRL's gradient in model's parameters."""
    import torch
    from trl import GRPOTrainer, RLOOTrainer

    prompts, completions = torch.tensor(outputs.prompts), torch.tensor(outputs.completions)
    mask = torch.tensor((np.arange(LONGEST) < outputs.lengths[:, None]).astype(np.float64))
    rewards = torch.tensor(outputs.rewards).view(QUESTIONS, GROUP)
    if case.trainer == "rloo":
        advantages = rewards - (rewards.sum(1, keepdim=True) - rewards) / (GROUP - 1)
    else:
        advantages = rewards - rewards.mean(1, keepdim=True)
        if case.row.name == "grpo":
            advantages = advantages / (rewards.std(1, keepdim=True) + EPSILON)

    def log_probs(*_: Any, **__: Any) -> Any:
        found = _log_probs(model, prompts, completions)
        return found, torch.zeros_like(found), None

    def one_process(value: Any, **_: Any) -> Any:
        return value

    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=log_probs,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=case.level,
        beta=0.0,
        loss_type=case.loss_type,
        epsilon_low=case.ratio.low,
        epsilon_high=1 + case.ratio.high if case.loss_type == "cispo" else case.ratio.high,
        args=SimpleNamespace(delta=None, steps_per_generation=1, use_bias_correction_kl=False),
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        model=model,
        accelerator=SimpleNamespace(
            num_processes=1, reduce=one_process, gather=one_process, autocast=nullcontext
        ),
        _entropy_bonus_enabled=False,
        _metrics={mode: {} for mode in ("train", "eval")},
    )
    trainer._metrics["train"] = _Lists()
    old = torch.tensor(outputs.old_log_probs)
    inputs = {
        "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions, "completion_mask": mask,
        "advantages": advantages.flatten(), "old_per_token_logps": old,
        "old_logps": (old * mask).sum(1), "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    kind: Any = RLOOTrainer if case.trainer == "rloo" else GRPOTrainer
    model.zero_grad()
    kind._compute_loss(trainer, model, inputs).backward()


class _Lists(dict[str, list[Any]]):
    def __missing__(self, key: str) -> list[Any]:
        return self.setdefault(key, [])


def _saved(model: Any, folder: Path) -> Any:
    """The weights of a transformers model as our parameters, in float64."""
    model.save_pretrained(folder)
    config = model_of(str(folder), compute_dtype="float64")
    like = param_shapes(config, make_mesh(MeshConfig()), VOCABULARY)
    params = load_params(open_weights(folder, config, VOCABULARY), like)
    return config, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def _outputs(model: Any, chance: np.random.Generator) -> Outputs:
    import torch

    size = QUESTIONS * GROUP
    prompts = np.repeat(chance.integers(3, VOCABULARY, (QUESTIONS, PROMPT)), GROUP, axis=0)
    completions = chance.integers(3, VOCABULARY, (size, LONGEST))
    lengths = chance.integers(1, LONGEST + 1, size)
    there = np.arange(LONGEST) < lengths[:, None]
    completions = np.where(there, completions, 0)
    with torch.no_grad():
        now = _log_probs(model, torch.tensor(prompts), torch.tensor(completions)).numpy()
    moved = now + chance.normal(0, 0.15, now.shape)
    correct = chance.random(size) < 0.4
    correct[:GROUP] = False  # a question that is never solved
    correct[[GROUP, 2 * GROUP, 3 * GROUP]], correct[[GROUP + 1]] = True, False
    return Outputs(prompts, completions, lengths, correct.astype(np.float64), moved * there)


def compare(names: Sequence[str]) -> dict[str, float]:
    """|ours - theirs| / |theirs| of each case."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    shape = transformers.Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        initializer_range=0.3,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(shape)
    apart = {}
    with jax.enable_x64(True), tempfile.TemporaryDirectory() as folder:
        config, params = _saved(model, Path(folder) / "weights")
        model = model.double().train()
        outputs = _outputs(model, np.random.default_rng(0))
        for name, case in _cases().items():
            if names and name not in names:
                continue
            ours = _ours(case, outputs, params, config)
            _theirs(case, outputs, model)
            gradient = transformers.Qwen2ForCausalLM(shape).double()
            for one, other in zip(gradient.parameters(), model.parameters(), strict=True):
                one.data = other.grad
            _, theirs = _saved(gradient.float(), Path(folder) / name.split(",")[0])
            pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
            off = sum(float(np.sum((np.asarray(a) - b) ** 2)) for a, b in pairs)
            apart[name] = (off / sum(float(np.sum(b**2)) for _, b in pairs)) ** 0.5
    return apart


def main() -> int:
    """Print the table; 1 where a gradient differs by more than float32 explains, in which
    transformers normalizes and rotates, and TRL's gradient is stored on its way here."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cases", nargs="+", default=[], help="leave out the others")
    apart = compare(parser.parse_args().cases)
    import trl

    print(f"TRL {trl.__version__}\n\n| method | relative difference of the gradients |\n|---|---|")
    for name, value in apart.items():
        print(f"| {name} | {value:.1e} |")
    return int(max(apart.values()) > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
