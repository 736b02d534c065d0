"""transformers: `generate` and continuous batching, and a plain torch step of its model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from benchmarks.protocol import Call, serve
from benchmarks.work import BOS, PAD, Task, Work

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def device() -> str:
    """The card's name, or the number of threads on the CPU."""
    if DEVICE == "cuda":
        return str(torch.cuda.get_device_name())
    return f"cpu, {torch.get_num_threads()} threads"


def build(work: Work, dtype: Any) -> Any:
    """A random model; transformers draws weights with deviation 0.02."""
    shape = work.shape
    torch.manual_seed(work.seed)
    config = transformers.Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.d_model,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=BOS,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    config._attn_implementation = "sdpa"
    with torch.device(DEVICE):
        return transformers.Qwen2ForCausalLM(config).to(dtype)


def _synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


class StopAt(transformers.StoppingCriteria):
    """Row b is done once it is totals[b] tokens long."""

    def __init__(self, totals: npt.NDArray[np.int32]):
        self.totals = torch.as_tensor(totals, device=DEVICE)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return input_ids.shape[1] >= self.totals


def prepare_generate(task: Task) -> Call:
    """options: facts (True: also the log-prob of every token)."""
    work, facts = task.work, bool(task.options.get("facts", False))
    model = build(work, getattr(torch, work.dtype)).eval()
    prompts = torch.as_tensor(work.prompt_tokens(), device=DEVICE).long()
    lengths = work.lengths(task.job)
    arguments = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": work.new_tokens,
        "num_return_sequences": work.samples,
        "pad_token_id": PAD,
        "eos_token_id": None,
        "output_scores": facts,
        "return_dict_in_generate": True,
    }

    def call(number: int) -> dict[str, Any]:
        torch.manual_seed(number)
        stops = transformers.StoppingCriteriaList()
        if task.job == "ragged":
            stops.append(StopAt(lengths.reshape(-1) + work.prompt_len))
        mask = torch.ones_like(prompts)
        made = model.generate(prompts, attention_mask=mask, stopping_criteria=stops, **arguments)
        if facts:
            model.compute_transition_scores(
                made.sequences, made.scores, normalize_logits=True
            ).cpu()
        tokens = made.sequences.cpu()
        if tuple(tokens.shape) != (work.sequences, work.prompt_len + int(lengths.max())):
            raise RuntimeError(f"outputs have the shape {tuple(tokens.shape)}.")
        return {"tokens": int(lengths.sum())}

    return call


def prepare_continuous(task: Task) -> Call:
    """Continuous batching: each request has its own max_new_tokens, which forces its length.

    The manager, its cache and its graphs are kept from call to call. On a CPU the cache gets a
    tenth of the free memory, since the default, 0.8, leaves too little for the other contenders,
    and the warm-up of graphs, which are CUDA's, is left out.
    """
    work = task.work
    model = build(work, getattr(torch, work.dtype)).eval()
    prompts = work.prompt_tokens()
    lengths = work.lengths(task.job).reshape(-1)
    config = transformers.GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=work.new_tokens,
        pad_token_id=PAD,
        eos_token_id=-1,
    )

    limits: dict[str, Any] = {}
    if DEVICE == "cpu":
        settings = transformers.ContinuousBatchingConfig(max_memory_percent=0.1)
        limits = {"continuous_batching_config": settings, "warmup": False}

    def call(number: int) -> dict[str, Any]:
        torch.manual_seed(number)
        done = tokens = 0
        with model.continuous_batching_context_manager(
            generation_config=config, persistent_manager=True, **limits
        ) as manager:
            for index, length in enumerate(lengths):
                prompt = prompts[index // work.samples].tolist()
                manager.add_request(prompt, max_new_tokens=int(length))
            while done < work.sequences:
                result = manager.get_result(timeout=5)
                if result is None:
                    if not manager.is_running():
                        raise RuntimeError("the manager of continuous batching stopped.")
                elif result.is_finished():
                    done += 1
                    tokens += len(result.generated_tokens)
        return {"tokens": tokens}

    return call


def prepare_update(task: Task) -> Call:
    """Mean cross-entropy and fused AdamW. options: microbatch (sequences of one, 0 for all)."""
    work = task.work
    model = build(work, torch.float32).train()
    ids = torch.as_tensor(work.batch(), device=DEVICE).long()
    count = int(task.options.get("microbatch", 0)) or len(ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)
    cast: Callable[[], Any] = lambda: torch.autocast(  # noqa: E731
        DEVICE, dtype=getattr(torch, work.dtype), enabled=work.dtype != "float32"
    )

    def call(number: int) -> dict[str, Any]:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=DEVICE)
        for start in range(0, len(ids), count):
            part = ids[start : start + count]
            with cast():
                loss = model(input_ids=part, labels=part, use_cache=False).loss
            share = loss * (len(part) / len(ids))
            share.backward()
            total += share.detach()
        optimizer.step()
        _synchronize()
        return {"tokens": ids.numel(), "loss": float(total)}

    return call


def prepare(task: Task) -> Call:
    """options: continuous (True: continuous batching in a sampling job)."""
    torch.set_num_threads(task.cores)
    if task.job == "update":
        return prepare_update(task)
    return (prepare_continuous if task.options.get("continuous") else prepare_generate)(task)


if __name__ == "__main__":
    serve(prepare, packages=("torch", "transformers", "numpy"), device=device)
