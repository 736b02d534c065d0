"""Which outputs are trained on, and with which weight: coefficients, dedupe, cap, denominator.

Host side, no device work.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rft_jax.config import Config, SelectionConfig
from rft_jax.config.method import Method, resolve
from rft_jax.errors import UserError
from rft_jax.training.critic import with_advantages
from rft_jax.training.objective import output_weights
from rft_jax.training.packing import OutputFacts, TrainingSequence, Weight
from rft_jax.training.scoring import with_kl_in_reward
from rft_jax.types import Facts, Sample, Verdict

_DIGITS = frozenset("0123456789")
_LEFT_SIDE = "".join(sorted(_DIGITS)) + "-+*/(). \t"
"""Characters of an equation's left side; it lies on one line."""
_RIGHT_SIDE = re.compile(r"=[ \t]*-?[0-9.,]*[0-9]")


def text_key(text: str) -> str:
    """Outputs that differ only in white space are equal."""
    return " ".join(text.split())


def equations(text: str) -> list[str]:
    """Arithmetic that ends in `= NUMBER`, in order, spaces removed.

    Linear in the text's length: one pattern for both sides would be cubic on long runs of digits.
    """
    found: list[str] = []
    end = 0
    for right in _RIGHT_SIDE.finditer(text):
        before = text[end : right.start()]
        left = before[len(before.rstrip(_LEFT_SIDE)) :]
        if not _DIGITS.isdisjoint(left):
            found.append("".join((left + right[0]).split()))
            end = right.end()
    return found


def equations_key(text: str) -> str:
    """The output's equations in order (Yuan et al., arXiv 2308.01825, section 3.3).

    An output without equations is told apart by its text, not thrown together with all others.
    """
    found = equations(text)
    return "equations:" + "|".join(found) if found else "text:" + text_key(text)


KEYS: dict[str, Callable[[str], str]] = {"text": text_key, "equations": equations_key}


def distinct(samples: Sequence[Sample], dedupe: str) -> list[Sample]:
    """The first of each question's samples with equal keys and verdicts, in order; all of them
    under "none"."""
    if dedupe == "none":
        return list(samples)
    key = KEYS[dedupe]
    first: dict[tuple[int, bool, str], Sample] = {}
    for sample in samples:
        first.setdefault((sample.question_id, sample.accepted, key(sample.text)), sample)
    return list(first.values())


def capped(samples: Sequence[Sample], max_per_question: int) -> list[Sample]:
    """The first `max_per_question` samples of each question and verdict, in order; 0 keeps all.

    Samples of a question are exchangeable, so taking the first is a fair choice.
    """
    if not max_per_question:
        return list(samples)
    kept: list[Sample] = []
    counts: dict[tuple[int, bool], int] = defaultdict(int)
    for sample in samples:
        group = (sample.question_id, sample.accepted)
        counts[group] += 1
        if counts[group] <= max_per_question:
            kept.append(sample)
    return kept


def facts_of(samples: Sequence[Sample], limit: int = 0, *, steps: bool = False) -> Facts:
    """The facts of decided samples, in order. limit: data.max_completion_tokens; steps: whether the
    rewards of steps are among them."""
    correct = np.array([sample.accepted for sample in samples], bool)
    return Facts(
        question_ids=np.array([sample.question_id for sample in samples], np.int64),
        correct=correct,
        rewards=np.array([sample.value for sample in samples], np.float32),
        lengths=np.array([sample.num_tokens for sample in samples], np.int64),
        finished=np.array([sample.finished for sample in samples], bool),
        log_probs=np.array([sample.log_prob for sample in samples], np.float64),
        limit=limit,
        step_rewards=_step_rewards(samples) if steps else None,
    )


def _step_rewards(samples: Sequence[Sample]) -> np.ndarray:
    longest = max((sample.num_tokens for sample in samples), default=0)
    found = np.full((len(samples), longest), np.nan, np.float32)
    for row, sample in zip(found, samples, strict=True):
        for last, reward in sample.steps or [(sample.num_tokens - 1, sample.value)]:
            row[last] = reward
    return found


def coefficients(method: Method, facts: Facts) -> np.ndarray:
    """GC of each output, checked.

    Args:
        method: the row.
        facts: of B decided outputs.

    Returns:
        float64, [B] or [B, T].

    Raises:
        UserError: the row's coefficient is not B finite numbers, or as many for each token, or not
            0 for an output that the row does not train on, or after an output's end.
    """
    size = len(facts.correct)
    if not size:
        return np.zeros(0)
    name = f"method {method.name}: its coefficient"
    try:
        found = np.asarray(method.coefficient(facts))
    except UserError:
        raise
    except Exception as error:  # whatever somebody's function does
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{name} failed ({text}): fix it, and run the command again.") from error
    longest = int(facts.lengths.max())
    shaped = found.shape == (size,) or (
        found.ndim == 2 and len(found) == size and found.shape[1] >= longest
    )
    if not shaped or found.dtype.kind not in "fiub":
        raise UserError(
            f"{name} gave {found.dtype} of shape {found.shape}: a number for each of {size} "
            f"outputs is expected, or for each of their {longest} tokens."
        )
    if found.ndim == 2 and method.log_ratios:
        raise UserError(
            f"{name} gave a number for each token, and it is computed again before each update "
            "(log_ratios): give one for each output."
        )
    found = found.astype(np.float64)
    if not np.isfinite(found).all():
        raise UserError(
            f"{name} gave {found[~np.isfinite(found)][0]}: finite numbers are expected."
        )
    if found.ndim == 2 and found[np.arange(found.shape[1]) >= facts.lengths[:, None]].any():
        raise UserError(f"{name} is not 0 after an output's end: give 0 there.")
    unseen = found[~facts.correct] if method.trains_on == "accepted" else found[:0]
    if unseen.any():
        raise UserError(
            f"{name} gave {unseen[unseen != 0][0]:g} for an output that is not accepted and "
            "trains_on is 'accepted': give 0, or set trains_on to 'decided'."
        )
    return found


def reduced(
    samples: Sequence[Sample], config: SelectionConfig | None
) -> tuple[list[Sample], list[Sample]]:
    """(distinct samples, those of them below the cap); all of them without a config."""
    if config is None:
        return list(samples), list(samples)
    unique = distinct(samples, config.dedupe)
    return unique, capped(unique, config.max_per_question)


def _facts(samples: Sequence[Sample], config: Config) -> Facts:
    """Of decided samples, all that the method of `config` reads."""
    facts = facts_of(samples, config.data.max_completion_tokens, steps=config.row.steps)
    if config.objective.kl_in == "reward":
        facts = with_kl_in_reward(facts, samples, config)
    if config.row.log_ratios:
        facts = facts._replace(log_ratios=np.zeros(len(samples)))
    if config.row.values:
        facts = with_advantages(facts, samples, config)
    return facts


class Kept(NamedTuple):
    """What a step trains on.

    samples: outputs with a coefficient that selection has kept, in the order they came;
    coefficients: GC of each, of each of its tokens where they differ; num_sampled, num_questions,
    num_tokens: the decided outputs, the questions with one and their tokens, that they stand for;
    num_outputs: of the step, undecided ones included; num_distinct: before the cap; decided: every
    decided output of the step, over which a KL term is; weights: of each sample in the objective,
    where they are known because the samples are a minibatch of a set that was weighed as a whole.
    """

    samples: Sequence[Sample]
    coefficients: Sequence[Weight]
    num_sampled: float
    num_questions: float
    num_tokens: float
    num_outputs: int
    num_distinct: int
    decided: Sequence[Sample]
    weights: Sequence[Weight] | None = None


def select(samples: Sequence[Sample], config: Config) -> Kept:
    """The samples that the method of `config` gives a coefficient, all of them where it has a value
    function, less duplicates and those beyond the cap.

    Coefficients are those of all decided samples together: a group's baseline sees every output.
    """
    decided = [sample for sample in samples if sample.verdict is not Verdict.UNDECIDED]
    facts = _facts(decided, config)
    found = coefficients(resolve(config.method), facts)
    coefficient_of: dict[int, Weight] = {}
    for one, value in zip(decided, found, strict=True):
        # A value function learns from every output, also one whose advantages are 0.
        if value.any() or config.row.values:
            coefficient_of[id(one)] = value[: one.num_tokens] if value.ndim else float(value)
    unique, kept = reduced([s for s in decided if id(s) in coefficient_of], config.selection)
    return Kept(
        samples=kept,
        coefficients=[coefficient_of[id(sample)] for sample in kept],
        num_sampled=len(decided),
        num_questions=len({sample.question_id for sample in decided}),
        num_tokens=int(facts.lengths.sum()),
        num_outputs=len(samples),
        num_distinct=len(unique),
        decided=decided,
    )


def weigh(kept: Kept, config: Config) -> Sequence[Weight]:
    """The weight of each kept sample in the objective: its coefficient over the denominator."""
    if kept.weights is not None:
        return kept.weights
    shares = output_weights(
        np.array([sample.question_id for sample in kept.samples], np.int64),
        np.array([sample.num_tokens for sample in kept.samples], np.int64),
        denominator=config.denominator,
        num_sampled=kept.num_sampled,
        num_questions=kept.num_questions,
        num_tokens=kept.num_tokens,
        constant_length=config.objective.constant_length or config.data.max_completion_tokens,
    )
    return [c * float(share) for c, share in zip(kept.coefficients, shares, strict=True)]


def training_sequences(
    kept: Kept, weights: Sequence[Weight], prompt: Callable[[int], Sequence[int]], config: Config
) -> list[TrainingSequence]:
    """The kept samples as the update takes them, in their order.

    With a KL term every decided sample is there, in the order sampled: the KL is over all samples
    of the policy.

    Args:
        kept: of one step.
        weights: of each kept sample.
        prompt: question id -> prompt tokens.
        config: objective.kl_coefficient and what the method reads count.
    """
    with_kl = config.objective.kl_loss > 0
    weight_of = {id(s): weight for s, weight in zip(kept.samples, weights, strict=True)}
    facts: dict[int, OutputFacts] = {}
    if config.row.log_ratios:
        for one, weight, coefficient in zip(kept.samples, weights, kept.coefficients, strict=True):
            facts[id(one)] = OutputFacts(
                question_id=one.question_id,
                correct=one.accepted,
                reward=one.value,
                finished=one.finished,
                reference=sum(one.reference),
                share=float(weight / coefficient),
            )
    trained = kept.decided if with_kl else kept.samples
    values: dict[int, tuple[Sequence[float], Sequence[float]]] = {}
    if config.row.values:
        advantages = _facts(trained, config).advantages
        assert advantages is not None
        for one, of_one in zip(trained, advantages, strict=True):
            values[id(one)] = (one.values, tuple((of_one[: one.num_tokens] + one.values).tolist()))
    prompts = {one: prompt(one) for one in {sample.question_id for sample in trained}}
    return [
        TrainingSequence(
            prompt=prompts[sample.question_id],
            completion=sample.tokens,
            weight=weight_of.get(id(sample), 0.0),
            kl_weight=1.0 / len(kept.decided) if with_kl else 0.0,
            log_probs=sample.log_probs,
            facts=facts.get(id(sample)),
            values=values.get(id(sample)),
        )
        for sample in trained
    ]


def reweighed(
    sequences: Sequence[TrainingSequence], log_probs: Sequence[np.ndarray], config: Config
) -> tuple[tuple[TrainingSequence, ...], dict[str, float]]:
    """The sequences of an update with the coefficients that the current policy gives them, and the
    mean of log pi_theta / pi_ref of correct and of incorrect outputs, in nats.

    Args:
        sequences: with facts.
        log_probs: of the current policy, for each token of each.
        config: its method counts.
    """
    known = [one.facts for one in sequences if one.facts is not None]
    now = np.array([float(of_output.sum(dtype=np.float64)) for of_output in log_probs])
    facts = Facts(
        question_ids=np.array([one.question_id for one in known], np.int64),
        correct=np.array([one.correct for one in known], bool),
        rewards=np.array([one.reward for one in known], np.float32),
        lengths=np.array([len(one.completion) for one in sequences], np.int64),
        finished=np.array([one.finished for one in known], bool),
        log_probs=np.array([sum(o.log_probs) if len(o.log_probs) else np.nan for o in sequences]),
        limit=config.data.max_completion_tokens,
        log_ratios=now - np.array([one.reference for one in known]),
    )
    found = coefficients(resolve(config.method), facts)
    weighed = tuple(
        one._replace(weight=float(coefficient) * of.share)
        for one, of, coefficient in zip(sequences, known, found, strict=True)
    )
    means = {
        f"policy/log_ratio_{name}": float(facts.log_ratios[these].mean())
        for name, these in (("correct", facts.correct), ("incorrect", ~facts.correct))
        if facts.log_ratios is not None and these.any()
    }
    return weighed, means
