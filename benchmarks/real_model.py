"""A published model there and back, at a size that shows memory: the rehearsal of real use.

    JAX_NUM_CPU_DEVICES=8 python -m benchmarks.real_model FOLDER     # needs torch and transformers

transformers makes a random Qwen2 in bfloat16, in several safetensors shards, with a byte-level
tokenizer. Then, each step in a process of its own: its weights are imported onto a mesh of fsdp 4 x
tensor 2; an experiment starts from it with one SFT step, then two steps of Online RFT on
the same mesh; `rft-jax convert` exports the result; transformers loads that, with warnings as
errors, and must give the logits that this package gives for the same files; else the command fails.

The peak of resident memory of each step is printed, and for the import also what of it were
parameters: simulated devices lie in the memory of the host, so the difference to the parameters'
bytes is what streaming needs. --layers and --width make it smaller.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MESH = {"data": 1, "fsdp": 4, "tensor": 2}
VOCAB = 2048
NUM_EOS = 96
"""This many ids end an output: a random model would hardly ever draw a single one."""
LARGEST_ERROR = 1e-5
"""Of logits in float32, relative to the largest."""
EXPERIMENT = """
from dataclasses import replace

from rft_jax.config import *
from rft_jax.hub.families import model_of

START = "hf:{model}"
sft = Config(
    method="sft",
    init_from=START,
    steps=1,
    data=DataConfig(
        train="jsonl:{questions}", validation="jsonl:{questions}",
        max_prompt_tokens=24, max_completion_tokens=24,
    ),
    tokenizer=TokenizerConfig(path=START),
    model=model_of(START, compute_dtype="bfloat16", remat="full"),
    mesh=MeshConfig(**{mesh}),
    update=UpdateConfig(row_length=48, rows_per_microbatch=8, sequences_per_step=8),
    optimizer=OptimizerConfig(learning_rate=1e-5),
    verification=VerificationConfig(verifier="random", canary="off", workers=1),
    evaluation=EvaluationConfig(verifier="hash"),
)
online_rft = replace(
    sft,
    method="online_rft",
    init_from="run:sft",
    steps=2,
    rollout=RolloutConfig(questions_per_step=8, samples_per_question=4),
    selection=SelectionConfig(),
    update=replace(sft.update, sequences_per_step=0),
)


def experiment():
    return {{"sft": sft, "online_rft": online_rft}}
"""


class Step(NamedTuple):
    """What a step took, and what it printed as JSON."""

    name: str
    seconds: float
    peak_bytes: int
    facts: dict[str, Any]


def make(folder: Path, layers: int, width: int) -> dict[str, Any]:
    """The model, its tokenizer and questions."""
    import tokenizers
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    ends = [f"<|end{number}|>" for number in range(NUM_EOS)]
    texts = [f"What is {a} plus {b}? The answer is #### {a + b}" for a in range(60) for b in (7, 9)]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<|pad|>", *ends],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    config = transformers.Qwen2Config(
        vocab_size=VOCAB, hidden_size=width, intermediate_size=width * 8 // 3 // 64 * 64,
        num_hidden_layers=layers, num_attention_heads=width // 64, num_key_value_heads=4,
        bos_token_id=None, eos_token_id=1, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = transformers.Qwen2ForCausalLM(config)
    model.to(torch.bfloat16)
    model.generation_config.eos_token_id = list(range(1, 1 + NUM_EOS))
    model.save_pretrained(folder / "model", max_shard_size="20MB")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=ends[0], pad_token="<|pad|>"
    )
    fast.save_pretrained(folder / "model")
    rows = [
        {"question": text.partition("?")[0] + "?", "answer": text.rpartition(" ")[2],
         "solution": text.partition("? ")[2]}
        for text in texts
    ]  # fmt: skip
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    content = EXPERIMENT.format(model=folder / "model", questions=questions, mesh=MESH)
    (folder / "rehearsal.py").write_text(content, encoding="utf-8")
    shards = sorted((folder / "model").glob("*.safetensors"))
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "shards": len(shards),
        "bytes": sum(shard.stat().st_size for shard in shards),
    }


def peak_bytes() -> int:
    """The most resident memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load(folder: Path) -> dict[str, Any]:
    """Import alone: what of the peak is not parameters."""
    import jax

    from rft_jax.config import MeshConfig
    from rft_jax.distributed.mesh import make_mesh
    from rft_jax.hub.families import model_of
    from rft_jax.hub.load import load_params
    from rft_jax.hub.weights import check_values, open_weights
    from rft_jax.training.state import param_shapes

    config = model_of(str(folder / "model"))
    mesh = make_mesh(MeshConfig(**MESH))
    jax.block_until_ready(jax.jit(lambda: jax.numpy.ones(8))())
    weights = open_weights(folder / "model", config, config.vocab_size)
    before = peak_bytes()
    check_values(weights)
    checked = peak_bytes()
    params = load_params(weights, param_shapes(config, mesh, config.vocab_size))
    jax.block_until_ready(params)
    leaves = jax.tree.leaves(params)
    return {
        "parameter_bytes": sum(s.data.nbytes for leaf in leaves for s in leaf.addressable_shards),
        "largest_tensor_bytes": max(int(np.prod(tensor.shape)) * 2 for tensor in weights.tensors),
        "checking_bytes": checked - before,
        "import_bytes": peak_bytes() - before,
    }


def compare(folder: Path) -> dict[str, Any]:
    """The export in transformers and here: the same logits, and no warning."""
    import jax
    import jax.numpy as jnp
    import torch
    import transformers

    from rft_jax.config import MeshConfig
    from rft_jax.distributed.mesh import make_mesh
    from rft_jax.hub.families import model_of
    from rft_jax.hub.load import load_params
    from rft_jax.hub.weights import open_weights
    from rft_jax.models import transformer
    from rft_jax.training.state import param_shapes

    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("error")
    read: Any = transformers.AutoModelForCausalLM.from_pretrained
    model, report = read(folder / "export", dtype=torch.float32, output_loading_info=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "export")
    tokens = np.array([tokenizer("What is 5 plus 7? The answer is")["input_ids"]])
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(tokens)).logits.numpy()
    config = model_of(str(folder / "export"))
    mesh = make_mesh(MeshConfig(**MESH))
    weights = open_weights(folder / "export", config, config.vocab_size)
    params = load_params(weights, param_shapes(config, mesh, config.vocab_size))
    positions = jnp.arange(tokens.shape[1])[None]

    @jax.jit
    def logits(params: Any) -> jax.Array:
        hidden = transformer.hidden_states(
            params, jnp.asarray(tokens), positions, jnp.ones_like(positions), config=config
        )
        return transformer.logits(params, hidden, config=config)

    found = np.asarray(logits(params)).transpose(1, 2, 0)
    complaints = [name for names in report.values() for name in names]
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if complaints or not error < LARGEST_ERROR:
        raise SystemExit(f"transformers complains of {complaints}; logits are {error:.1e} apart")
    return {"complaints": len(complaints), "relative_error": error}


def step(name: str, command: list[str]) -> Step:
    """Run one step in a process of its own."""
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    text = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{name} failed: {' '.join(command)}")
    facts = json.loads(text.strip().splitlines()[-1]) if name in STAGES else {}
    return Step(name, time.perf_counter() - began, usage.ru_maxrss * 1024, facts)


STAGES = ("make", "import", "compare")


def main() -> None:
    """Carry out one stage, or all of them one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--stage", choices=STAGES)
    given = parser.parse_args()
    folder = given.folder.absolute()
    if given.stage == "make":
        print(json.dumps(make(folder, given.layers, given.width)))
        return
    if given.stage:
        print(json.dumps({"import": load, "compare": compare}[given.stage](folder)))
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    here = [sys.executable, "-m", "benchmarks.real_model", str(folder), "--stage"]
    ours = [sys.executable, "-m", "rft_jax"]
    work = str(folder / "work")
    plan = {
        "make": [*here, "make", "--layers", str(given.layers), "--width", str(given.width)],
        "import": [*here, "import"],
        "run": [*ours, "run", str(folder / "rehearsal.py"), "--workdir", work],
        "convert": [
            *ours, "convert", f"{work}/online_rft", str(folder / "export"),
            "--dtype", "bfloat16", "--max_shard_gb", "0.05",
        ],
        "compare": [*here, "compare"],
    }  # fmt: skip
    print("| step | seconds | peak memory, MiB | facts |\n|---|---|---|---|")
    for name, command in plan.items():
        done = step(name, command)
        facts = ", ".join(f"{key} {value}" for key, value in done.facts.items())
        peak = done.peak_bytes / 2**20
        print(f"| {name} | {done.seconds:.0f} | {peak:.0f} | {facts} |", flush=True)


if __name__ == "__main__":
    main()
