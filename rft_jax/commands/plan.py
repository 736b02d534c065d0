"""`rft-jax plan`: whether runs fit a target, and how long they take there, before any is run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from rft_jax.commands.options import PlanOptions
from rft_jax.config import Config
from rft_jax.errors import ConfigError
from rft_jax.io.paths import check_file, new_file
from rft_jax.planning import search, tables, targets
from rft_jax.planning.plan import Record, plan
from rft_jax.planning.roofline import Supposed
from rft_jax.planning.search import Candidate
from rft_jax.planning.targets import Target

logger = logging.getLogger(__name__)

TPU_SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is opened, so others may compile beside
}
"""Of the environment, where its user has not set them."""
SPARE = 3
"""Meshes of a search that are also tried when the compiler needs too much for the best."""
ADVICE = 6
"""Changes that are named at most."""


def target_of(options: PlanOptions) -> Target:
    """What the options ask a plan for. Raises ConfigError."""
    if options.device:
        return targets.counted(options.device)
    if options.topology:
        described = targets.slice_of if options.counted else targets.described
        return described(options.topology)
    return targets.at_hand()


def keep_to_the_cpu() -> None:
    """Have jax look for no other device. Must come before anything else that uses jax."""
    jax.config.update("jax_platforms", "cpu")
    for name, value in TPU_SETTINGS.items():
        os.environ.setdefault(name, value)


def supposed(config: Config, options: PlanOptions) -> Supposed:
    """What the options suppose of a run."""
    prompts, outputs = config.data.max_prompt_tokens, config.data.max_completion_tokens
    prompt = options.mean_prompt_tokens or prompts / 3
    output = options.mean_output_tokens or outputs / 2
    for name, mean, longest in (("prompt", prompt, prompts), ("output", output, outputs)):
        if mean > longest:
            raise ConfigError(
                f"--mean_{name}_tokens is {mean:g}, and the longest have {longest}: it cannot be "
                "more."
            )
    sets = (options.validation_questions, options.test_questions)
    return Supposed(prompt, output, options.pass_rate, *sets)


def plan_all(experiment: Mapping[str, Config], options: PlanOptions) -> list[Record]:
    """The plans of an experiment's runs, each printed once it is made; of a search its ranking and
    the plans of the best. Writes options.json. Raises ConfigError."""
    if options.json is not None:
        check_file(options.json, "--json")
    target = target_of(options)
    rankings: dict[str, list[Record]] = {}
    plans: list[Record] = []
    for name, config in experiment.items():
        try:
            if options.search:
                found = search.search(config, target, supposed(config, options))
                rankings[name] = search.ranking(found)
                print(tables.ranking(name, target.name, rankings[name]), end="\n\n", flush=True)
                plans += _of_the_best(name, found, target, options)
            else:
                plans.append(_plan(name, config, target, options))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    if options.json is not None:
        _write(options.json, {"rankings": rankings, "plans": plans})
    return plans


def _of_the_best(
    name: str, found: Sequence[Candidate], target: Target, options: PlanOptions
) -> list[Record]:
    """Plans of the best `options.compile` that fit. A compiler may need more than the count: then
    the next one takes its place; after SPARE of these, or where none fits, all that was made."""
    plans: list[Record] = []
    wanted, fit = options.compile, 0
    for one in found[: wanted + SPARE]:
        plans.append(_plan(name, one.config, target, options))
        fit += plans[-1]["memory"]["fits"]
        if fit == wanted or (len(plans) >= wanted and not one.fits):
            break
    return [made for made in plans if made["memory"]["fits"]] or plans


def _plan(name: str, config: Config, target: Target, options: PlanOptions) -> Record:
    logger.info("%s: planning for %s", name, target.name)
    made = plan(name, config, target, supposed(config, options), whole=options.whole)
    if not made["memory"]["fits"]:
        made["advice"] = [one._asdict() for one in search.advise(config, target)[:ADVICE]]
    print(tables.markdown(made), end="\n\n", flush=True)
    return made


def _write(path: Path, content: Record) -> None:
    installed = filter(importlib.util.find_spec, ("rft_jax", "jax", "jaxlib", "libtpu"))
    versions = {"versions": {name: importlib.metadata.version(name) for name in installed}}
    with new_file(path, "--json") as file:
        file.write(json.dumps(content | versions, indent=1) + "\n")
