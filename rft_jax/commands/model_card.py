"""The model card of a policy that goes out: what it is, where it comes from, how it did. No jax."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rft_jax.checkpoint.policy import Policy, kept_start, start_folder
from rft_jax.checkpoint.provenance import FILE, load_config, versions
from rft_jax.config import Config, DataConfig
from rft_jax.config.method import Method
from rft_jax.io.jsonl import read_json
from rft_jax.io.paths import Folder
from rft_jax.observe import log
from rft_jax.observe.tables import markdown
from rft_jax.report import record

ERRORS = {"greedy/accuracy": "greedy/standard_error", "pass_at/1": "sampled/standard_error"}
"""Measures whose standard error over questions is logged, and its name."""

_OUTPUTS = {
    "demonstrations": "demonstrations",
    "pool": "outputs sampled once from the frozen start",
    "policy": "outputs of the current policy",
}
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(@[^@\s]+)?")


def model_card(policy: Policy, name: str, others: Sequence[tuple[Policy, float]] = ()) -> str:
    """README.md: YAML that the hub reads, then Markdown.

    Args:
        policy: what goes out.
        name: of the folder that README.md lies in.
        others: that its parameters are averaged with, by their weights.

    Raises:
        DataError: the log of the run is damaged.
    """
    run, base = policy.config, _base_model(policy)
    if run is not None:
        about = _about_run(policy, run, base)
    else:
        version = versions()["rft_jax"]
        about = [
            f"The weights of `{policy.name}`, written by rft_jax {version}; not trained there."
        ]
    if others:
        share = 1 - sum(weight for _, weight in others)
        parts = [f"{weight:g} x `{one.name}`" for one, weight in [(policy, share), *others]]
        about = [
            f"Averaged parameters: {' + '.join(parts)}. What follows is of the first.\n",
            *about,
        ]
    use = _use(policy.data, name)
    return "\n".join([*_front_matter(run, base), f"# {name}", "", *about, "", *use, ""])


def method_summary(row: Method) -> str:
    """A method in one line: its own words, or else its fields."""
    return row.about or f"method {row.name}, on {_OUTPUTS[row.source]} that are {row.trains_on}"


def _front_matter(run: Config | None, base: str | None) -> list[str]:
    tags = ["rft_jax"]
    if run is not None:
        tags += [run.row.name.replace("_", "-"), *(["lora"] if run.model.lora_rank else [])]
    return [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        *([f"base_model: {base}"] if base else []),
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
        "",
    ]


def _about_run(policy: Policy, run: Config, base: str | None) -> list[str]:
    info = read_json(policy.folder / FILE)
    settings = json.dumps(info["config"], indent=2, ensure_ascii=False)
    results = _results(policy.folder)
    return [
        f"A language model trained with rft_jax: {method_summary(run.row)}.",
        "",
        markdown(("", "what"), _facts(policy, run, base, info)),
        "",
        "<details><summary>All settings</summary>\n",
        f"```json\n{settings}\n```\n",
        "</details>",
        *(["", "## Results", "", *results] if results else []),
        *_record(info),
    ]


def _record(info: Mapping[str, Any]) -> list[str]:
    """What the run rests on, and what has changed in it between its starts."""
    inputs, changes = record.input_rows(info), record.change_rows(info)
    lines: list[str] = []
    if inputs:
        lines += ["", "## Made from", "", markdown(("what", "where", "sha256"), inputs)]
    if changes:
        header = ("from step", "what", "was", "now")
        lines += ["", "Changed when it was resumed:", "", markdown(header, changes)]
    return lines


def _facts(
    policy: Policy, run: Config, base: str | None, info: Mapping[str, Any]
) -> list[tuple[str, str]]:
    model, data, step = run.model, run.data, policy.step
    start = kept_start(run.init_from, policy.folder)
    verifier = f"{run.verification.verifier}, {run.verification.comparison}"
    trained = "all parameters"
    if model.lora_rank:
        trained = (
            f"adapters (LoRA) of rank {model.lora_rank} and alpha {model.lora_alpha:g} on "
            f"{', '.join(model.lora_targets)}, merged into these weights"
        )
    commit = f", commit {info['git_commit']}" if info.get("git_commit") else ""
    scheduled = run.schedule.sources if run.schedule is not None else ()
    facts = {
        "method": f"{run.row.name}, {run.steps:,} steps",
        "checkpoint": "" if step is None else f"of step {step:,}",
        "start": f"`{run.init_from}`"
        + ("" if start is None else f" (step {start:,})")
        + (f", which goes back to {base}" if base else ""),
        "trained": trained,
        "training data": ", ".join(f"`{one}`" for one in (data.train, *scheduled)),
        "validation data": f"`{data.validation}`",
        "test data": f"`{data.test}`" if data.test else "",
        "verifier": "" if run.row.source == "demonstrations" else verifier,
        "made by": f"rft_jax {info['versions']['rft_jax']}{commit}"
        + (" and changes to it" if info.get("dirty") else ""),
        "devices": f"{info['num_devices']} x {info['device']}",
    }
    return [(name, value) for name, value in facts.items() if value]


def _results(folder: Folder) -> list[str]:
    """A row for each evaluation that the run logged; nothing where there is none."""
    path = folder / "metrics.jsonl"
    logged = log.read(path) if path.is_file() else []
    lines = [line for line in logged if line["kind"] in ("validation", "test")]
    if not lines:
        return []
    names = dict.fromkeys(
        name
        for start in ("greedy/accuracy", "pass_at/", "maj_at/")
        for line in lines
        for name in line
        if name.startswith(start)
    )
    header = ("questions", "step", *(_heading(name) for name in names), "entropy")
    rows = [
        (
            line["kind"],
            f"{line['step']:,}",
            *(_percent(line, name) for name in names),
            _shown(line.get("policy/entropy"), ".3f"),
        )
        for line in lines
    ]
    note = "± is one standard error over questions; entropy in nats a token."
    return [markdown(header, rows), "", note]


def _heading(name: str) -> str:
    return name.replace("greedy/", "greedy ").replace("_at/", "@") + " %"


def _percent(line: Mapping[str, Any], name: str) -> str:
    value, error = line.get(name), line.get(ERRORS.get(name, ""))
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _use(data: DataConfig, name: str) -> list[str]:
    """How to load it and ask it a question as it was asked in training."""
    quoted = functools.partial(json.dumps, ensure_ascii=False)
    prompt = f'{quoted(data.template)}.replace("{{question}}", question)'
    if data.prompt_format == "chat":
        system = f'    {{"role": "system", "content": {quoted(data.system)}}},'
        user = f'    {{"role": "user", "content": {prompt}}},'
        ask = ["messages = [", *([system] if data.system else []), user, "]"]
        tokens = [
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True,',
            *(f"    {name}={value!r}," for name, value in data.variables.items()),
            ")",
        ]
        extra = f", chat_template_kwargs={data.variables!r}" if data.variables else ""
        vllm = f"chat(messages{extra}"
    else:
        ask = [f"prompt = {prompt}"]
        tokens = ['inputs = tokenizer(prompt, return_tensors="pt")']
        vllm = "generate(prompt"
    longest = data.max_completion_tokens
    return [
        "## Use",
        "",
        "With transformers:\n\n```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({quoted(name)})",
        f'model = AutoModelForCausalLM.from_pretrained({quoted(name)}, dtype="auto")',
        'question = "..."',
        *ask,
        *tokens,
        'length = inputs["input_ids"].shape[1]',
        f"output = model.generate(**inputs, max_new_tokens={longest}, do_sample=False)",
        "print(tokenizer.decode(output[0, length:], skip_special_tokens=True))",
        "```",
        "",
        "With vLLM:\n\n```python",
        "from vllm import LLM, SamplingParams",
        "",
        f"llm = LLM({quoted(name)})",
        'question = "..."',
        *ask,
        f"settings = SamplingParams(temperature=0.0, max_tokens={longest})",
        f"print(llm.{vllm}, sampling_params=settings)[0].outputs[0].text)",
        "```",
    ]


def _base_model(policy: Policy) -> str | None:
    """ORG/NAME of the hub that the policy is or goes back to; None where nothing says so."""
    start, folder = policy.init_from, policy.folder
    while not start.startswith("hf:"):
        if start == "random":
            return None
        folder = start_folder(start, folder.parent) or folder
        if not (folder / FILE).is_file():
            return None
        start = load_config(folder).init_from
    target = start.removeprefix("hf:")
    repository = _REPOSITORY.fullmatch(target)
    return repository[1] if repository and not Path(os.path.expanduser(target)).exists() else None
