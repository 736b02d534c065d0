"""Where the outputs of a step come from: the policy of the step, demonstrations, or a pool.

A source has one method, `outputs`. The policy's are sampled as they are asked for. Demonstrations
and a pool are fixed sets: selected and weighed once, as a whole, by the functions that a step uses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from rft_jax.checkpoint.inputs import Input, of_outputs
from rft_jax.config import Config
from rft_jax.data import schedule, stream
from rft_jax.data.curriculum import History
from rft_jax.data.prompts import completion_tokens, prompt_tokens, split_by_length
from rft_jax.data.stream import Position
from rft_jax.distributed.collectives import from_main, meet
from rft_jax.errors import ConfigError, UserError
from rft_jax.io.paths import Folder
from rft_jax.keys import Purpose
from rft_jax.observe.flops import Model
from rft_jax.observe.progress import Progress
from rft_jax.rollout import log as rollout_log
from rft_jax.rollout.engine import Outputs, Rollout, Sampling, sample, verify
from rft_jax.rollout.funnel import funnel
from rft_jax.runs import setup
from rft_jax.runs.utilization import sampling_cost
from rft_jax.training.methods import is_trained
from rft_jax.training.packing import Weight
from rft_jax.training.scoring import Score, scored
from rft_jax.training.selection import Kept, select, weigh
from rft_jax.types import Decoded, Params, Question, Sample, Verdict
from rft_jax.verification.canary import FirstOutputs, watch_undecided

Metrics = dict[str, Any]


@dataclass(frozen=True)
class PolicySource:
    """Outputs of the current policy (Online RFT), or of the one that is given, for a pool.

    repeats: whether a row that an epoch's end and the next one's start both name counts twice.
    purpose: of the samples' keys.
    """

    questions: Sequence[Question]
    config: Config
    sampling: Sampling
    repeats: bool = False
    purpose: Purpose = Purpose.ROLLOUT

    @property
    def size(self) -> int:
        """Rows of its stream."""
        return len(self.questions)

    @property
    def per_step(self) -> int:
        """Rows taken at a time."""
        assert self.config.rollout is not None
        return self.config.rollout.questions_per_step

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each source."""
        return schedule.sizes(self.questions, self.config)

    def outputs(
        self,
        rows: Sequence[int],
        policy: Callable[[], Params],
        step: int,
        temperature: float | None = None,
    ) -> Outputs:
        """One round of the rollout's settings, on its way to the verifier. temperature: where it is
        not that of the settings."""
        rollout, method, objective = self.config.rollout, self.config.row, self.config.objective
        assert rollout is not None
        with_kl = objective.kl_coefficient + objective.kl_outputs > 0

        def shares(output: Sample) -> bool:
            # A KL is over all decided outputs.
            return is_trained(method, output) or (
                with_kl and output.verdict is not Verdict.UNDECIDED
            )

        return sample(
            policy(),
            [self.questions[row] for row in rows],
            self.sampling,
            step=step,
            num_samples=rollout.samples_per_question,
            temperature=temperature or rollout.temperature,
            purpose=self.purpose,
            questions_per_batch=rollout.questions_per_step,
            num_slots=rollout.slots,
            shares=shares,
        )

    def prompt(self, question_id: int) -> Sequence[int]:
        """The prompt tokens of a question."""
        text = self._by_id[question_id].text
        return prompt_tokens(text, self.config.data, self.sampling.tokenizer)

    @functools.cached_property
    def _by_id(self) -> dict[int, Question]:
        return {question.id: question for question in self.questions}


@dataclass(frozen=True)
class FixedSet:
    """Minibatches of a fixed set of samples, in seeded random order, epoch after epoch.

    Weights are those of the whole set; a minibatch scales them so that its expectation is theirs.
    units: samples that stay together, by their numbers, one for each row of the stream; logged: the
    outputs that a pool was read from.
    """

    kept: Kept
    weights: Sequence[Weight]
    prompts: Mapping[int, Sequence[int]]
    units: Sequence[Sequence[int]]
    per_step: int
    repeats: bool = True
    logged: Input | None = None

    @property
    def size(self) -> int:
        """Rows of its stream."""
        return len(self.units)

    def outputs(
        self,
        rows: Sequence[int],
        policy: Callable[[], Params],
        step: int,
        temperature: float | None = None,
    ) -> Kept:
        """The samples of these rows."""
        scale, numbers = self.size / self.per_step, [n for row in rows for n in self.units[row]]
        return self.kept._replace(
            samples=[self.kept.samples[number] for number in numbers],
            coefficients=[self.kept.coefficients[number] for number in numbers],
            weights=[self.weights[number] * scale for number in numbers],
        )

    def prompt(self, question_id: int) -> Sequence[int]:
        """The prompt tokens of a question."""
        return self.prompts[question_id]


Source = PolicySource | FixedSet


def take(
    source: Source,
    seed: int,
    position: Position,
    asked: Container[int],
    step: int = 0,
    history: History = MappingProxyType({}),
) -> tuple[list[int], Position]:
    """The next rows of a source's stream, none of those asked, and the position after them.

    step, history: what a schedule and a curriculum go by.

    A question that a step has asked is passed over: it would get the same samples, as their keys
    are addressed. So is, for the same reason, one that an epoch's end and the next one's start
    both name.
    """
    if isinstance(source, PolicySource) and not schedule.is_plain(source.config):
        questions, sizes = source.questions, source.sizes
        return schedule.take(questions, sizes, source.config, position, asked, step, history)
    while True:
        rows, position = stream.take(source.size, seed, position, source.per_step)
        named = rows.tolist() if source.repeats else list(dict.fromkeys(rows.tolist()))
        if new := [row for row in named if row not in asked]:
            return new, position


def num_unasked(source: Source, step: int, asked: Sized) -> int:
    """How many rows a step has left to ask, of sources that it asks at all."""
    if isinstance(source, FixedSet):
        return source.size - len(asked)
    counts = schedule.counts(source.config, step)
    parts = zip(source.sizes, counts, strict=True)
    return sum(size for size, count in parts if count) - len(asked)


def demonstrations(questions: Sequence[Question], config: Config, sampling: Sampling) -> FixedSet:
    """The questions' own solutions, each an accepted output."""
    samples = [
        Sample(
            question_id=question.id,
            sample_index=0,
            step=0,
            text=question.solution or "",
            tokens=tuple(completion_tokens(question.solution or "", sampling.tokenizer)),
            log_probs=(),
            finished=True,
            verdict=Verdict.CORRECT,
            reason="demonstration",
        )
        for question in questions
    ]
    fixed = _fixed(samples, questions, config, sampling)
    if not fixed.size:
        raise UserError(
            f"method {config.row.name} gives no demonstration of {config.data.train} a coefficient "
            "other than 0: there is nothing to train on; change its coefficient or data.train."
        )
    return fixed


def _fixed(
    samples: Sequence[Sample],
    questions: Sequence[Question],
    config: Config,
    sampling: Sampling,
    score: Score | None = None,
) -> FixedSet:
    prompts = {q.id: prompt_tokens(q.text, config.data, sampling.tokenizer) for q in questions}
    if score is not None:
        samples = scored(samples, prompts.__getitem__, reference=score)
    kept = select(samples, config)._replace(decided=())
    if config.ratio is None and not config.row.log_ratios:
        # What the sampler reported is of another policy than the one that is updated.
        kept = kept._replace(samples=[replace(sample, log_probs=()) for sample in kept.samples])
    units: list[list[int]] = [[number] for number in range(len(kept.samples))]
    per_step = config.update.sequences_per_step
    if config.row.log_ratios:
        units, per_step = _groups(kept.samples, per_step)
    return FixedSet(kept, weigh(kept, config), prompts, units, per_step)


def _groups(samples: Sequence[Sample], sequences_per_step: int) -> tuple[list[list[int]], int]:
    """The numbers of each question's outputs, and how many questions' fit in a step."""
    groups: dict[int, list[int]] = {}
    for number, one in enumerate(samples):
        groups.setdefault(one.question_id, []).append(number)
    longest = max(map(len, groups.values()), default=1)
    if longest > sequences_per_step:
        raise ConfigError(
            f"update.sequences_per_step is {sequences_per_step}: it must hold all outputs of a "
            f"question, up to {longest} here, as the method compares them; raise it, or lower "
            "selection.max_per_question."
        )
    return list(groups.values()), sequences_per_step // longest


def writer() -> rollout_log.Writer:
    """This process, as the one that writes its part of a log."""
    return rollout_log.Writer(jax.process_index(), jax.process_count())


def seconds_of(rounds: Sequence[Rollout]) -> dict[str, float]:
    """Seconds of rollouts, as metrics."""
    return {
        "seconds/sampling": sum(drawn.seconds_sampling for drawn in rounds),
        "seconds/verifying": sum(drawn.seconds_verifying for drawn in rounds),
        "seconds/verifying_hidden": sum(drawn.seconds_verifying_hidden for drawn in rounds),
    }


def slow_verdicts_of(rounds: Sequence[Rollout]) -> dict[str, float]:
    """How many verdicts time could have decided, as a metric."""
    return {"funnel/slow_verdicts": sum(drawn.slow_verdicts for drawn in rounds)}


@dataclass(frozen=True)
class Pool:
    """RFT's samples: rollouts of one policy, sampled once into a log and read from it.

    evaluated: questions, by setting, that pool.from_rollouts is warned of when it asks them too;
    score: under pi_ref, where the method reads it; number: of the pool, where one takes the place
    of another.
    """

    questions: Sequence[Question]
    config: Config
    sampling: Sampling
    folder: Folder
    evaluated: Mapping[str, Sequence[Question]] = field(default_factory=dict)
    score: Score | None = None
    number: int = 0

    @property
    def steps(self) -> range:
        """Its rollouts' steps in the log: pools follow each other."""
        assert self.config.pool is not None
        size = self.config.pool.rollout_steps
        return range(self.number * size, (self.number + 1) * size)

    def rounds(self) -> Iterator[tuple[int, list[int]]]:
        """Step and rows of each rollout that fills the pool."""
        assert self.config.pool is not None
        source = PolicySource(self.questions, self.config, self.sampling)
        first = self.steps.start if schedule.is_plain(self.config) else 0
        position = Position(*divmod(first * source.per_step, source.size))
        updates = self.config.pool.every_steps or self.config.steps
        for step in range(first, self.steps.stop):
            # A schedule's: the rollouts of a pool stand for its updates, evenly.
            update = step * updates // self.config.pool.rollout_steps
            rows, position = take(source, self.config.seed, position, frozenset(), update)
            if step in self.steps:
                yield step, rows

    def _outputs(self, rows: Sequence[int]) -> int:
        """Of a rollout of these rows."""
        assert self.config.rollout is not None
        return len(rows) * self.config.rollout.samples_per_question

    def fill(
        self, policy: Callable[[], Params], stopped: Callable[[], int]
    ) -> dict[str, float] | None:
        """Sample what is not in the log yet; metrics of that, or None when stopped before the end.

        A rollout that is there whole is not repeated, so a killed run resumes where it was. The
        first outputs are looked at before more are sampled.

        Args:
            policy: what samples it.
            stopped: the signal so far, the same in all processes.
        """
        name = f"{self.folder.parent.name} pool"
        there = from_main(
            name,
            lambda: [
                step
                for step, rows in self.rounds()
                if rollout_log.is_whole(self.folder, step, self._outputs(rows))
            ],
        )
        purpose = Purpose(from_main(f"{name}'s keys", lambda: self._purpose(there)))
        source = PolicySource(self.questions, self.config, self.sampling, purpose=purpose)
        metrics: dict[str, float] = {}
        first = FirstOutputs(self.config)
        with Progress(len(self.steps), len(there), name) as progress:
            for step, rows in self.rounds():
                if step in there:
                    if not first.done:
                        logged = rollout_log.read_step(self.folder, step, self._outputs(rows))
                        first.see([sample for _, sample in logged])
                    continue
                if stopped():
                    return None
                drawn = verify(source.outputs(rows, policy, step))
                asked = [self.questions[row] for row in rows]
                rollout_log.write(
                    self.folder, step, drawn.own, asked,
                    seed=self.config.seed, purpose=purpose, writer=writer(),
                    outputs=self._outputs(rows),
                )  # fmt: skip
                first.see(drawn.samples)
                seconds = seconds_of([drawn])
                for name, value in (seconds | slow_verdicts_of([drawn])).items():
                    metrics[name] = metrics.get(name, 0) + value
                progress.update(
                    step + 1 - self.steps.start,
                    acceptance=float(np.mean([sample.accepted for sample in drawn.samples])),
                    tokens_per_second=drawn.num_tokens / sum(seconds.values()),
                )
        return metrics

    def _purpose(self, there: Sequence[int]) -> int:
        """What the pool's keys are for; one that an earlier version began is filled as it was."""
        return rollout_log.purpose_of(self.folder, there[0]) if there else Purpose.POOL

    def read(self) -> tuple[FixedSet, Metrics]:
        """The fixed set, from the log or from pool.from_rollouts, and its funnel.

        Raises:
            VerifierError: too many outputs are undecided.
            UserError: no output is trained on, or the log is not one of this run's tokenizer and
                shapes.
            DataError: a prompt is too long (unless data.drop_too_long), or the log is damaged.
        """
        assert self.config.pool is not None
        logs = self.config.pool.from_rollouts or (str(self.folder),)
        pairs = (
            rollout_log.read_folders(logs) if self.config.pool.from_rollouts else self._own_log()
        )
        asked = {question.id: question for question, _ in pairs}
        named, data = ", ".join(logs), self.config.data
        fitting, sentence = split_by_length(
            list(asked.values()),
            source=named,
            data=data,
            tokenizer=self.sampling.tokenizer,
            demonstrations=False,
        )
        setup.settle_too_long([sentence], data)
        ids = {question.id for question in fitting}
        samples = [sample for _, sample in pairs if sample.question_id in ids]
        check_log(named, samples, self.config, self.sampling)
        watch_undecided(samples, self.config, "the pool")
        fixed = _fixed(samples, fitting, self.config, self.sampling, self.score)
        if not fixed.size:
            raise UserError(
                f"{named}: none of {len(samples)} sampled outputs is trained on (method "
                f"{self.config.row.name}; {sum(s.accepted for s in samples)} are correct): look at "
                "them in the report, start from a better model, or sample more "
                "(pool.rollout_steps, rollout.samples_per_question)."
            )
        kept = fixed.kept
        counts = funnel(samples, num_distinct=kept.num_distinct, num_kept=len(kept.samples))
        if not self.config.pool.from_rollouts:
            counts["utilization/sampling_flops"] = self._flops(samples, fixed.prompt)
        else:
            parts = {"pool.from_rollouts": fitting, **self.evaluated}
            setup.warn_of_shared(self.folder.parent.name, parts)
            if data.drop_too_long:
                counts["data/too_long"] = len(asked) - len(fitting)
        logged = of_outputs(named, pairs)
        counts |= schedule.metrics(self.config, list(asked.values()), {})
        return replace(fixed, logged=logged), counts | {
            "sampled_tokens": sum(len(sample.tokens) for sample in samples),
            "sampled_outputs": len(samples),
        }

    def _flops(self, samples: Sequence[Sample], prompt: Callable[[int], Sequence[int]]) -> float:
        """Products of sampling all of it, in however many attempts."""
        groups: dict[tuple[int, int], list[int]] = {}
        for one in samples:
            groups.setdefault((one.step, one.question_id), []).append(one.num_tokens)
        prompts = tuple(len(prompt(question)) for _, question in groups)
        vocab = setup.vocab_size(self.config.model, self.sampling.tokenizer)
        decoded = Decoded(prompts, tuple(map(tuple, groups.values())), steps=0)
        return sampling_cost(Model(self.config.model, vocab), decoded).flops

    def _own_log(self) -> list[tuple[Question, Sample]]:
        """In the order in which its questions were asked, whichever process wrote it."""
        meet(f"{self.folder.parent.name} pool is written")
        pairs = []
        for step, rows in self.rounds():
            place = {self.questions[row].id: number for number, row in enumerate(rows)}
            of_step = rollout_log.read_step(self.folder, step, self._outputs(rows))
            pairs += sorted(of_step, key=lambda pair: place.get(pair[0].id, -1))
        return pairs


def check_log(source: str, samples: Sequence[Sample], config: Config, sampling: Sampling) -> None:
    """UserError unless the outputs fit the run's shapes and their tokens are their text."""
    data, tokenizer = config.data, sampling.tokenizer
    rows = config.model.vocab_size or tokenizer.vocab_size
    for output in samples:
        tokens, place = output.tokens, f"step {output.step}, question {output.question_id}"
        if not 0 < len(tokens) <= data.max_completion_tokens:
            raise UserError(
                f"{source}: an output of {place} has {len(tokens)} tokens and "
                f"data.max_completion_tokens is {data.max_completion_tokens}: set it to that of "
                "the run that sampled."
            )
        ids = all(0 <= token < rows for token in tokens)
        ends = not output.finished or tokens[-1] in tokenizer.eos_ids
        shown = tokens[:-1] if output.finished else tokens
        if not ids or not ends or tokenizer.decode(shown) != output.text:
            raise UserError(
                f"{source}: the tokens of an output of {place} are not its text under "
                f"{tokenizer.path}: name the tokenizer it was sampled with as tokenizer.path."
            )
