"""Everything a run needs before its first step, checked before any work is done."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from rft_jax import checkpoint
from rft_jax.batches import Params, TrainState
from rft_jax.config import Config, ConfigError
from rft_jax.data import tokenizer as tokenizers
from rft_jax.data.prompts import check_lengths
from rft_jax.data.sources import load
from rft_jax.data.tokenizer import Tokenizer
from rft_jax.keys import Purpose, run_key
from rft_jax.models import kernels, transformer
from rft_jax.models.axes import logical_axes
from rft_jax.parallel.mesh import batch_size_divisor, param_shardings, replicated
from rft_jax.provenance import load_config
from rft_jax.records import Question
from rft_jax.training.update import init_state


@dataclass(frozen=True)
class Questions:
    """The questions of a run by their use."""

    train: tuple[Question, ...]
    validation: tuple[Question, ...]
    test: tuple[Question, ...]


def make_folder(folder: Path) -> None:
    """ConfigError when a run's folder cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot write here ({error.strerror}): use another --workdir."
        ) from error


def ensure_tokenizer(config: Config, workdir: Path) -> Tokenizer:
    """The run's tokenizer: loaded from its path, or WORKDIR/tokenizer.model, trained if missing."""
    settings = config.tokenizer
    if settings.path:
        return tokenizers.load(Path(settings.path))
    path = _tokenizer_path(config, workdir)
    if not path.exists():
        texts = [
            text
            for question in load(settings.corpus, config.data.data_dir)
            for text in (question.text, question.solution)
            if text
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizers.train(texts, path, settings.vocab_size)
    tokenizer = tokenizers.load(path)
    if tokenizer.vocab_size != settings.vocab_size:
        raise ConfigError(
            f"tokenizer.vocab_size is {settings.vocab_size} and {path} has "
            f"{tokenizer.vocab_size} pieces: choose another --workdir or that size."
        )
    return tokenizer


def _tokenizer_path(config: Config, workdir: Path) -> Path:
    return Path(config.tokenizer.path) if config.tokenizer.path else workdir / "tokenizer.model"


def load_questions(config: Config, tokenizer: Tokenizer) -> Questions:
    """All questions of a run. Raises DataError for bad rows, and for those that are too long."""
    data = config.data

    def part(source: str, *, demonstrations: bool = False, first: int = 0) -> tuple[Question, ...]:
        questions = load(source, data.data_dir) if source else ()
        questions = questions[:first] if first else questions
        check_lengths(
            questions,
            source=source,
            template=data.prompt_template,
            tokenizer=tokenizer,
            max_prompt_tokens=data.max_prompt_tokens,
            max_completion_tokens=data.max_completion_tokens,
            demonstrations=demonstrations,
        )
        return questions

    # RFT from a log of rollouts asks no questions.
    from_log = config.pool is not None and bool(config.pool.from_rollouts)
    evaluates = config.evaluation.every_steps > 0
    questions = Questions(
        train=() if from_log else part(data.train, demonstrations=config.method == "sft"),
        validation=(
            part(data.validation, first=config.evaluation.num_questions) if evaluates else ()
        ),
        test=part(data.test),
    )
    asked = config.rollout.questions_per_step if config.rollout else 0
    if asked > len(questions.train):
        raise ConfigError(
            f"rollout.questions_per_step is {asked} and {data.train} has {len(questions.train)} "
            "questions: ask at most that many in a step."
        )
    return questions


def check_devices(config: Config, mesh: Mesh) -> None:
    """Raises ConfigError when the update's rows cannot be split over the mesh, when jax would
    quietly compute in another type, or when the attention asked for is not to be had here."""
    if jax.dtypes.canonicalize_dtype(config.model.compute_dtype) != config.model.compute_dtype:
        raise ConfigError(
            "model.compute_dtype is float64, which jax computes in float32 by default: set "
            "JAX_ENABLE_X64=1, or choose float32 or bfloat16."
        )
    rows, divisor = config.update.rows_per_microbatch, batch_size_divisor(mesh)
    if rows % divisor:
        raise ConfigError(
            f"update.rows_per_microbatch is {rows}: it must be a multiple of mesh.data x mesh.fsdp,"
            f" {divisor}."
        )
    kernel = config.model.attention
    slots, platform = config.update.row_length, jax.default_backend()
    reason = kernels.cannot(kernel, config.model, slots, platform)
    if reason:
        raise ConfigError(f"model.attention is {kernel}: {reason}; leave it at auto.")


@dataclass(frozen=True)
class Layout:
    """Where parameters and optimizer state live. rollout: parameters while sampling."""

    params: Any
    rollout: Any
    state: Any


def make_layout(
    config: Config, mesh: Mesh, optimizer: optax.GradientTransformation, vocab_size: int
) -> tuple[Layout, TrainState]:
    """Shardings, and the abstract state that is to be restored or made."""
    shapes = transformer.abstract_params(config=config.model, vocab_size=vocab_size)
    axes = logical_axes(shapes)
    params = param_shardings(mesh, shapes, axes)
    state = jax.eval_shape(functools.partial(init_state, optimizer=optimizer), shapes)
    everywhere = replicated(mesh)
    # Moments lie where their parameters lie; counts are everywhere.
    of_optimizer = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.optimizer,
        params,
        transform_non_params=lambda _: everywhere,
    )
    shardings: Any = TrainState(everywhere, params, of_optimizer)  # type: ignore[arg-type]
    layout = Layout(params, param_shardings(mesh, shapes, axes, fsdp=False), shardings)
    return layout, checkpoint.abstract(state, shardings)


def start_params(
    config: Config,
    experiment: Mapping[str, Config],
    workdir: Path,
    abstract: Params,
    layout: Layout,
) -> Params:
    """The parameters of pi_sft, or random ones: what the run starts from."""
    kind, _, target = config.init_from.partition(":")
    if kind == "random":
        vocab_size = abstract["embedding"].shape[0]
        make = functools.partial(transformer.init, config=config.model, vocab_size=vocab_size)
        key = run_key(seed=config.seed, purpose=Purpose.INIT)
        return jax.jit(make, out_shardings=layout.params)(key)
    folder = workdir / target if kind == "run" else Path(target)
    if not (folder / "finished.json").is_file():
        name = f"run {target}" if kind == "run" else str(folder)
        raise ConfigError(
            f"init_from is {config.init_from}: {name} is not finished; carry it out first"
            + (" (leave out --only)." if kind == "run" else ".")
        )
    _check_same_policy(config, workdir, folder)
    return checkpoint.restore_params(folder / "checkpoints", abstract)


def _check_same_policy(config: Config, workdir: Path, start: Path) -> None:
    """ConfigError when the run in `start` gave its parameters another meaning than this run does.

    What shows in shapes is found when they are read.
    """
    theirs = load_config(start)
    for name in ("rope_theta", "norm_eps"):
        before, now = getattr(theirs.model, name), getattr(config.model, name)
        if before != now:
            raise ConfigError(
                f"model.{name} is {now} and init_from, {config.init_from}, was trained with "
                f"{before}: use the same."
            )
    old, new = _tokenizer_path(theirs, start.parent), _tokenizer_path(config, workdir)
    if old.is_file() and old.read_bytes() != new.read_bytes():
        raise ConfigError(
            f"init_from is {config.init_from}, whose tokenizer, {old}, is another than {new}: set "
            "tokenizer.path to that of init_from."
        )


def fresh_state(
    params: Params, optimizer: optax.GradientTransformation, layout: Layout
) -> TrainState:
    """The state before the first update, on the mesh."""
    make = functools.partial(init_state, optimizer=optimizer)
    return jax.jit(make, out_shardings=layout.state)(params)
