"""`rft_jax.open_policy`, and the same for the commands that ask a checkpoint. jax is imported once
there is something to compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rft_jax.checkpoint import policy as policies
from rft_jax.commands.ask import JUDGING, Asked, ask
from rft_jax.commands.options import Asking, ComputeDtype, Drawing, Judging, Measuring
from rft_jax.config import MeshConfig
from rft_jax.config.serialize import suggest
from rft_jax.errors import ConfigError, DataError
from rft_jax.types import Question

if TYPE_CHECKING:
    from rft_jax.commands.evaluate import Evaluated
    from rft_jax.types import Params

Questions = str | Iterable[str | Mapping[str, Any] | Question]
"""A source such as jsonl:PATH, or questions: texts, {"question": ..., "answer": ...}, Questions."""


def open_policy(target: str, compute_dtype: ComputeDtype | None = None) -> OpenedPolicy:
    """The policy of a checkpoint, to sample from and to evaluate.

    Args:
        target: the folder of a run (WORKDIR/RUN, finished or not, for its newest checkpoint; with
            @STEP or @best for another that is kept), a folder in the Hugging Face format, or
            hf:ORG/NAME[@REVISION] of the hub.
        compute_dtype: type of weights and activations; None for the run's, or for that of a
            published model's weights.

    Raises UserError where there is no such policy.
    """
    return OpenedPolicy(policies.find(str(target), compute_dtype))


class OpenedPolicy:
    """A policy, whose parameters are loaded at the first use. `policy` says what is known of it."""

    def __init__(self, policy: policies.Policy) -> None:
        self.policy = policy
        self._params: dict[MeshConfig, Params] = {}

    def __repr__(self) -> str:
        return f"OpenedPolicy({self.policy.name!r})"

    def sample(
        self,
        questions: Questions,
        samples_per_question: int = 1,
        temperature: float | None = None,
        greedy: bool = False,
        **asking: Any,
    ) -> list[dict[str, Any]]:
        """Sample outputs.

        Args:
            questions: a source, or texts, mappings or Questions.
            samples_per_question: outputs of each question.
            temperature: divides the logits; None for that of the run's evaluations, or 1.
            greedy: take the most probable token at each place instead.
            asking: fields of rft_jax.commands.options.Asking, such as max_completion_tokens, seed,
                questions_per_batch and prompt_template.

        Returns: a row for each output, in order of question and sample, as `rft-jax sample` writes
        it (`output` is its text), with its `tokens` and their `log_probs` in nats. rft_jax.verify
        takes these rows.
        """
        drawing = Drawing(samples_per_question, temperature, greedy)
        asked = self._ask(questions, asking)
        from rft_jax.commands.sample import outputs
        from rft_jax.rollout.engine import output_row

        return [
            output_row(question, draft, asked.data, asked.tokenizer)
            | {"tokens": list(draft.tokens), "log_probs": list(draft.log_probs)}
            for question, draft in outputs(self.policy, asked, drawing, self._load(asked))
        ]

    def evaluate(
        self,
        questions: Questions,
        samples_per_question: int | None = None,
        temperature: float | None = None,
        **settings: Any,
    ) -> Evaluated:
        """Measure greedy accuracy and, with samples, pass@k and maj@k with 95 % intervals.

        Args:
            questions: a source, or mappings or Questions, with their answers.
            samples_per_question: outputs of each question for pass@k and maj@k; None for as many as
                in the run's test, or 0.
            temperature: of those; None for that of the run's evaluations, or 1.
            settings: fields of rft_jax.commands.options.Asking and Judging, such as
                max_completion_tokens, verifier and timeout_seconds.

        Returns: the estimates and whatever else was measured; print it for a table.
        """
        names = {field.name for field in dataclasses.fields(Judging)}
        judging = Judging.of(**{name: settings.pop(name) for name in names & set(settings)})
        measuring = Measuring(judging, samples_per_question, temperature)
        asked = self._ask(questions, settings, judging)
        from rft_jax.commands.evaluate import evaluate

        return evaluate(self.policy, asked, measuring, self._load(asked))

    def _ask(
        self, questions: Questions, asking: Mapping[str, Any], judging: Judging | None = None
    ) -> Asked:
        names = [field.name for field in dataclasses.fields(Asking)][1:]
        for name in asking:
            if name not in names:
                raise ConfigError(f"{name} is no option{suggest(name, names)}")
        if isinstance(questions, str):
            return prepare(Asking(questions, **asking), self.policy, judging=judging)
        given = _questions(questions, needs_answers=judging is not None)
        return prepare(Asking("given", **asking), self.policy, given, judging)

    def _load(self, asked: Asked) -> Params:
        from rft_jax.checkpoint.start import to_sample_from
        from rft_jax.distributed.mesh import make_mesh

        if asked.mesh not in self._params:
            self._params[asked.mesh] = to_sample_from(self.policy, make_mesh(asked.mesh))
        return self._params[asked.mesh]


def prepare(
    asking: Asking,
    policy: policies.Policy,
    given: tuple[Question, ...] = (),
    judging: Judging | None = None,
) -> Asked:
    """What the policy is asked, all that can be checked before device work; and jax set up for it.

    given: questions in place of those of asking.questions; judging: of an evaluation.
    """
    asked = ask(asking, policy, given, judging or JUDGING)
    from rft_jax.distributed.process import keep_programs, split_cpu

    keep_programs()
    split_cpu([asked.mesh], [])
    return asked


def _questions(
    questions: Iterable[str | Mapping[str, Any] | Question], needs_answers: bool
) -> tuple[Question, ...]:
    rows = tuple(_question(number, one) for number, one in enumerate(questions))
    if not rows:
        raise DataError("questions are empty: give one or more.")
    for number, row in enumerate(rows):
        if needs_answers and row.answer == "":
            raise DataError(f"questions[{number}] has no answer, which an evaluation needs.")
    if len({row.id for row in rows}) < len(rows):
        raise DataError("questions have the same id twice: an id is unique.")
    return rows


def _question(number: int, one: object) -> Question:
    """The question at a place of a list; its id is the place, unless it is a Question."""
    if isinstance(one, Question):
        return one
    row = {"question": one} if isinstance(one, str) else one
    if not isinstance(row, Mapping) or not isinstance(row.get("question"), str):
        raise DataError(
            f'questions[{number}] is {one!r}: a text, {{"question": ..., "answer": ...}} or a '
            "Question is expected."
        )
    answer = row.get("answer", "")
    return Question(
        number,
        row["question"],
        answer if isinstance(answer, list | dict) else str(answer),
        columns={name: row[name] for name in row if name not in ("question", "answer")},
    )
