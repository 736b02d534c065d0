"""Everything a run needs before its first step, checked before any work is done."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh

from rft_jax.checkpoint import inputs as digests
from rft_jax.checkpoint import integrity
from rft_jax.checkpoint.inputs import Input, Inputs
from rft_jax.checkpoint.policy import start_folder, start_of
from rft_jax.checkpoint.provenance import check_name, load_config
from rft_jax.config import Config, DataConfig, ModelConfig
from rft_jax.config.fields import named_sources
from rft_jax.data import schedule
from rft_jax.data.prompts import ends_text, prompt_text, split_by_length
from rft_jax.data.sources import load
from rft_jax.data.tokenizers import load as tokenizers
from rft_jax.data.tokenizers.base import Tokenizer
from rft_jax.data.tokenizers.sentencepiece_model import train
from rft_jax.distributed.collectives import is_main
from rft_jax.distributed.mesh import batch_size_divisor, param_shardings
from rft_jax.errors import ConfigError, DataError, UserError
from rft_jax.hub.folder import locate, prompting_of
from rft_jax.io.paths import Folder, folder_of, in_bucket, make, writing
from rft_jax.models import kernels
from rft_jax.models.axes import logical_axes
from rft_jax.models.transformer import abstract_params
from rft_jax.rollout.engine import rows_for
from rft_jax.types import Question
from rft_jax.verification.canary import evaluation_spec, training_spec

logger = logging.getLogger(__name__)


_USES = {
    "data.train": "train", "schedule.sources": "train",
    "data.validation": "validation", "data.more_validation": "validation",
    "data.test": "test", "data.more_test": "test",
}  # fmt: skip


def use_of(setting: str) -> str:
    """What the questions are for that a setting, or one of its names, `SETTING[NAME]`, gives."""
    return _USES.get(setting.partition("[")[0], setting)


@dataclass(frozen=True)
class Questions:
    """The questions of a run.

    parts: by their setting, `SETTING[NAME]` where it gives several sources; inputs: digests of all
    that these hold; too_long: how many of a use are left out; a log of rollouts
    (pool.from_rollouts) counts its own.
    """

    parts: Mapping[str, tuple[Question, ...]]
    inputs: Inputs = field(default_factory=dict)
    too_long: Mapping[str, int] = field(default_factory=dict)

    @property
    def train(self) -> tuple[Question, ...]:
        """Those of all sources, one source's after the other's."""
        return tuple(itertools.chain.from_iterable(self.sets("train").values()))

    @property
    def validation(self) -> tuple[Question, ...]:
        """Those of data.validation."""
        return self.parts.get("data.validation", ())

    @property
    def test(self) -> tuple[Question, ...]:
        """Those of data.test."""
        return self.parts.get("data.test", ())

    def sets(self, use: str) -> dict[str, tuple[Question, ...]]:
        """Those of a use by the names of sets, the main one's empty."""
        return {
            setting.partition("[")[2].rstrip("]"): questions
            for setting, questions in self.parts.items()
            if use_of(setting) == use
        }

    @property
    def evaluated(self) -> dict[str, tuple[Question, ...]]:
        """Those that the run evaluates on, by their setting."""
        return {name: one for name, one in self.parts.items() if use_of(name) != "train"}


def make_folder(folder: Folder) -> None:
    """UserError when a run's folder cannot be made or written to."""
    with writing(folder):
        make(folder)
        if not in_bucket(folder) and not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def ensure_tokenizer(config: Config, workdir: Folder) -> Tokenizer:
    """The run's tokenizer: loaded from its path, or WORKDIR/tokenizer.model, trained if missing."""
    settings, path = config.tokenizer, tokenizer_path(config, workdir)
    if settings.path:
        return tokenizers.load(path)
    if not path.exists():
        texts = [
            text
            for question in load(settings.corpus, config.data.data_dir, any_answer=True)
            for text in (question.text, question.solution)
            if text
        ]
        train(texts, path, settings.vocab_size)
    tokenizer = tokenizers.load(path)
    if tokenizer.vocab_size != settings.vocab_size:
        raise ConfigError(
            f"tokenizer.vocab_size is {settings.vocab_size} and {path} has "
            f"{tokenizer.vocab_size} pieces: choose another --workdir or that size."
        )
    return tokenizer


def tokenizer_path(config: Config, workdir: Folder) -> Folder:
    """The file or folder of a run's tokenizer; one that `hf:` names on the hub is downloaded."""
    path = config.tokenizer.path
    if path.startswith("hf:"):
        return locate(path.removeprefix("hf:"), weights=False)
    return folder_of(path) if path else workdir / "tokenizer.model"


def vocab_size(model: ModelConfig, tokenizer: Tokenizer) -> int:
    """Rows of the embedding; ConfigError when the tokenizer has more pieces."""
    if model.vocab_size and model.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {model.vocab_size} and {tokenizer.path} has "
            f"{tokenizer.vocab_size} pieces: use the model's own tokenizer."
        )
    return model.vocab_size or tokenizer.vocab_size


def check_same_tokenizer(config: Config, workdir: Folder) -> None:
    """ConfigError when the run that this one starts from has another tokenizer."""
    start = start_folder(config.init_from, workdir)
    if start is None or not (start / "config.json").is_file():
        return
    old = tokenizer_path(load_config(start), start.parent)
    new = tokenizer_path(config, workdir)
    before = _content(old)
    if before and before != _content(new):
        raise ConfigError(
            f"init_from is {config.init_from}, whose tokenizer, {old}, is another than {new}: set "
            "tokenizer.path to that of init_from."
        )


def _content(tokenizer: Folder) -> bytes:
    """What tells tokenizers apart: the pieces, in a file or a Hugging Face folder; of one that is
    gone, nothing."""
    files = (tokenizer, tokenizer / "tokenizer.json", tokenizer / "tokenizer.model")
    return next((file.read_bytes() for file in files if file.is_file()), b"")


def load_questions(config: Config, tokenizer: Tokenizer) -> Questions:
    """All questions of a run.

    Raises DataError for bad rows, and for those that are too long unless data.drop_too_long.
    """
    data, sources, plan = config.data, _sources(config), config.schedule
    loaded = {setting: _load(source, config) for setting, source in sources.items()}
    inputs: Inputs = {}
    for setting, source in sources.items():
        inputs |= digests.of_rows(setting, source, loaded[setting])
    if first := config.evaluation.num_questions:
        loaded |= {one: loaded[one][:first] for one in loaded if use_of(one) == "validation"}
    most = {"data.train": 1.0}
    if plan is not None:
        trained = [setting for setting in sources if use_of(setting) == "train"]
        most = dict(zip(trained, plan.most, strict=True))
        for number, one in enumerate(trained):
            loaded[one] = schedule.numbered(loaded[one], number, sources[one])
    split = {
        setting: split_by_length(
            questions,
            source=sources[setting],
            data=data,
            tokenizer=tokenizer,
            demonstrations=setting == "data.train" and config.row.source == "demonstrations",
        )
        for setting, questions in loaded.items()
    }
    settle_too_long([sentence for _, sentence in split.values()], data)
    too_long: Counter[str] = Counter()
    for setting, (fitting, sentence) in split.items():
        if sentence and not fitting:
            raise DataError(f"{sentence}: none is left for {setting}.")
        too_long[use_of(setting)] += len(loaded[setting]) - len(fitting)
    questions = Questions(
        {setting: fitting for setting, (fitting, _) in split.items()}, inputs, dict(too_long)
    )
    asked = config.rollout.questions_per_step if config.rollout else 0
    for setting, share in most.items():
        of_source, there = math.ceil(asked * share), len(questions.parts.get(setting, ()))
        if of_source > there:
            given = f", {of_source} of them from {setting}," if of_source < asked else ""
            raise ConfigError(
                f"rollout.questions_per_step is {asked}{given} and {sources[setting]} has {there} "
                "questions: ask at most that many in a step."
            )
    return questions


def _load(source: str, config: Config) -> tuple[Question, ...]:
    """The questions of a source, with all that the verifiers of the run read of a row."""
    specs = [training_spec(config), evaluation_spec(config) or training_spec(config)]
    return load(
        source,
        config.data.data_dir,
        columns=any(spec.reads_rows for spec in specs),
        any_answer=all(spec.takes_any_answer for spec in specs),
    )


def settle_too_long(sentences: Sequence[str], data: DataConfig) -> None:
    """Raise DataError with what is said of questions that are too long, or with data.drop_too_long
    log it."""
    said = "; ".join(dict.fromkeys(filter(None, sentences)))
    if said and not data.drop_too_long:
        raise DataError(f"{said}: raise it, or leave them out with data.drop_too_long=True.")
    if said and is_main():
        logger.warning("%s: left out, as data.drop_too_long says", said)


def warn_of_shared(name: str, parts: Mapping[str, Sequence[Question]]) -> None:
    """Say how many questions, by their text, two parts of the run `name` have in common."""
    texts = {
        part: {" ".join(question.text.split()) for question in questions}
        for part, questions in parts.items()
    }
    shared = [
        f"{a} and {b} share {len(both):,}"
        for a, b in itertools.combinations(texts, 2)
        if use_of(a) != use_of(b) and (both := texts[a] & texts[b])
    ]
    if shared and is_main():
        logger.warning(
            "%s: questions of the same text stand in several parts of the data: %s; an accuracy on "
            "questions that are trained on, or that settings are chosen on, is none on new ones.",
            name, ", ".join(shared),
        )  # fmt: skip


def _sources(config: Config) -> dict[str, str]:
    """The sources that a run reads, by their fields."""
    # RFT from a log of rollouts asks no questions.
    from_log = config.pool is not None and bool(config.pool.from_rollouts)
    data, plan = config.data, config.schedule
    sources = {
        "data.train": "" if from_log else data.train,
        **_each("schedule.sources", () if plan is None else plan.sources),
        "data.validation": data.validation if config.evaluation.every_steps else "",
        **_each("data.more_validation", data.more_validation),
        "data.test": data.test,
        **_each("data.more_test", data.more_test),
    }
    return {setting: source for setting, source in sources.items() if source}


def _each(setting: str, values: Sequence[str]) -> dict[str, str]:
    return {f"{setting}[{name}]": one for name, one in named_sources(setting, values).items()}


def inputs_of_finished(
    config: Config, workdir: Folder, run: Folder, known: Mapping[str, Input]
) -> Inputs:
    """What a finished run rests on, as far as it is there; weights of the known size and time are
    not read."""
    inputs: Inputs = {}
    for setting, source in _sources(config).items():
        with contextlib.suppress(UserError):  # what is gone is needed no more
            inputs |= digests.of_rows(setting, source, _load(source, config))
    with contextlib.suppress(UserError):
        inputs |= inputs_beside_data(config, workdir, run, known, starts=False)
    return {name: one for name, one in inputs.items() if one.sha256 is not None}


def inputs_beside_data(
    config: Config, workdir: Folder, run: Folder, known: Mapping[str, Input], *, starts: bool
) -> Inputs:
    """Tokenizer, start and code that a run rests on.

    Args:
        config: of the run.
        workdir: of the experiment.
        run: its folder.
        known: what was recorded of it.
        starts: whether the parameters of the start are going to be loaded: published weights are
            downloaded for that only.
    """
    kind, _, target = config.init_from.partition(":")
    start: Inputs = {}
    if kind == "hf":
        start = digests.of_weights(locate(target, weights=starts), known)
    elif folder := start_folder(config.init_from, workdir):
        if kind == "run":
            check_name(folder)
        # What is gone is missed only where it is loaded.
        with contextlib.nullcontext() if starts else contextlib.suppress(UserError):
            _, step = start_of(config.init_from, workdir, run)
            record = digests.of_file(folder / "checkpoints" / str(step) / integrity.RECORD)
            if record.sha256:
                start = {"init_from": record._replace(where=f"{config.init_from}, step {step}")}
    tokenizer = digests.of_tokenizer(tokenizer_path(config, workdir))
    return tokenizer | start | digests.of_code(config)


def show_prompts(
    name: str, config: Config, workdir: Folder, questions: Questions, tokenizer: Tokenizer
) -> None:
    """Log the first prompt and what ends an output; warn where the start was asked otherwise."""
    data, start = config.data, start_folder(config.init_from, workdir)
    for question in [*questions.train, *questions.validation][:1]:
        text = prompt_text(question.text, data, tokenizer)
        logger.info("%s: first prompt: %r", name, text)
    logger.info("%s: %s", name, ends_text(tokenizer))
    before: dict[str, Any] = {}
    if config.init_from.startswith("hf:"):
        before = prompting_of(config.init_from)
    elif start is not None and (start / "config.json").is_file():
        before = load_config(start).data.prompting
    apart = [f"data.{k} is {data.prompting[k]!r}, was {old!r}" for k, old in before.items()
             if old != data.prompting[k]]  # fmt: skip
    if apart:
        logger.warning(
            "%s: init_from, %s, was asked in another way: %s", name, config.init_from,
            "; ".join(apart),
        )  # fmt: skip


def check_devices(config: Config, mesh: Mesh) -> None:
    """Raises ConfigError when the model or the update's rows cannot be split over the mesh, when
    jax would quietly compute in another type, or when the attention asked for is not to be had
    here."""
    if jax.dtypes.canonicalize_dtype(config.model.compute_dtype) != config.model.compute_dtype:
        raise ConfigError(
            "model.compute_dtype is float64, which jax computes in float32 by default: set "
            "JAX_ENABLE_X64=1, or choose float32 or bfloat16."
        )
    _check_sizes(config, mesh)
    kernel = config.model.attention
    slots, platform = config.update.row_length, jax.default_backend()
    reason = kernels.cannot(kernel, config.model, slots, platform)
    if reason:
        raise ConfigError(f"model.attention is {kernel}: {reason}; leave it at auto.")


def warn_of_fillers(name: str, config: Config, mesh: Mesh) -> None:
    """Say so when the mesh leaves rows of each rollout of the run `name` empty."""
    if config.rollout is None:
        return
    asked, shards = config.rollout.questions_per_step, batch_size_divisor(mesh)
    rows = rows_for(asked, asked, shards)
    if rows != asked:
        logger.warning(
            "%s: rollout.questions_per_step is %d and a rollout is split over mesh.data x "
            "mesh.fsdp, %d: %d of %d rows stay empty; ask %d questions for as much memory.",
            name, asked, shards, rows - asked, rows, rows,
        )  # fmt: skip


def _check_sizes(config: Config, mesh: Mesh) -> None:
    """ConfigError, one for all sizes that the mesh cannot split."""
    wrong = []
    # A vocabulary that only the tokenizer's file tells is checked with the layout.
    vocab_size = config.model.vocab_size or config.tokenizer.vocab_size or mesh.shape["tensor"]
    shapes = abstract_params(config=config.model, vocab_size=vocab_size)
    try:
        param_shardings(mesh, shapes, logical_axes(shapes))
    except ConfigError as error:
        wrong.append(str(error))
    rows, divisor = config.update.rows_per_microbatch, batch_size_divisor(mesh)
    if rows % divisor:
        wrong.append(
            f"update.rows_per_microbatch is {rows}: it must be a multiple of mesh.data x mesh.fsdp,"
            f" {divisor}."
        )
    if wrong:
        raise ConfigError(" ".join(wrong))
