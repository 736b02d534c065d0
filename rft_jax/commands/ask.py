"""What a policy is asked: questions, prompts and their shapes, from a command's options, the
policy's run, or defaults for published models. No jax.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rft_jax.checkpoint.policy import Policy
from rft_jax.commands import verify
from rft_jax.commands.options import Asking, Judging
from rft_jax.config import DataConfig, MeshConfig
from rft_jax.config.data import PROMPTING
from rft_jax.data import sources
from rft_jax.data.prompts import ends_text, exceeding, prompt_text, prompt_tokens, with_ends
from rft_jax.data.tokenizers.base import Tokenizer
from rft_jax.errors import ConfigError, DataError, ModelError
from rft_jax.types import Question
from rft_jax.verification.canary import evaluation_spec, limits_of, training_spec
from rft_jax.verification.rules import Limits, VerifierSpec

QUESTIONS_PER_BATCH = 64
"""Of a published model."""
JUDGING = Judging()

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """Questions with everything that decides how they are put, all of it checked.

    data: prompts, and the lengths that the shapes have; tokenizer: with the ends that outputs have.
    """

    source: str
    questions: tuple[Question, ...]
    data: DataConfig
    tokenizer: Tokenizer
    mesh: MeshConfig
    seed: int
    questions_per_batch: int


def verifier_of(policy: Policy, judging: Judging) -> tuple[VerifierSpec, Limits]:
    """The verifier of the run's evaluations, or the default one, but for what is given."""
    run = policy.config
    if run is None:
        spec, limits = verify.judge(judging)
    else:
        own = evaluation_spec(run) or training_spec(run)
        spec, limits = verify.override(own, limits_of(run), judging)
    for name in ("comparison", "tolerance"):
        if spec.takes_any_answer and getattr(judging, name) is not None:
            raise ConfigError(
                f"{name} does nothing beside the rule {spec.name}, which compares by itself: "
                "leave it out."
            )
    return spec, limits


def ask(
    asking: Asking, policy: Policy, given: Sequence[Question] = (), judging: Judging = JUDGING
) -> Asked:
    """Load the questions and make every prompt; logs the format, and the first prompt.

    given: questions in place of those of the source `asking.questions`, which then only names them;
    judging: what reads their answers and columns, in place of the policy's own.
    Raises DataError, ModelError and ConfigError for what does not fit.
    """
    run = policy.config
    with _naming_options():
        data = _prompting(asking, policy)
        tokenizer = with_ends(policy.tokenizer, data)
    spec, _ = verifier_of(policy, judging)
    questions = tuple(given) or sources.load(
        asking.questions,
        data.data_dir,
        columns=spec.reads_rows,
        any_answer=spec.takes_any_answer,
    )
    if not spec.takes_any_answer and any(not isinstance(q.answer, str) for q in questions):
        raise DataError(
            f"{asking.questions}: an answer is no text; only a verifier of your own reads others."
        )
    with _naming_options():
        lengths = [len(prompt_tokens(q.text, data, tokenizer)) for q in questions]
    longest, allowed = max(lengths), asking.max_prompt_tokens
    if allowed is not None and longest > allowed:
        said = exceeding(questions, lengths, "prompts", "max_prompt_tokens", allowed)
        raise ConfigError(f"{asking.questions}: {said}: raise it, or leave it out.")
    data = replace(data, max_prompt_tokens=asking.max_prompt_tokens or longest)
    logger.info("prompt format: %s", data.prompt_format)
    first = prompt_text(questions[0].text, data, tokenizer)
    logger.info("first prompt, %d tokens: %r; %s", lengths[0], first, ends_text(tokenizer))
    needed = longest + data.max_completion_tokens
    if policy.max_positions is not None and needed > policy.max_positions:
        logger.warning(
            "%s is made for texts of up to %d tokens; the longest prompt and output have %d",
            policy.name, policy.max_positions, needed,
        )  # fmt: skip
    mesh = run.mesh if run else MeshConfig()
    size = run.evaluation.questions_per_batch if run else QUESTIONS_PER_BATCH
    seed = asking.seed if asking.seed is not None else run.seed if run else 0
    return Asked(
        source=asking.questions,
        questions=questions,
        data=data,
        tokenizer=tokenizer,
        mesh=MeshConfig(*asking.mesh) if asking.mesh else mesh,
        seed=seed,
        questions_per_batch=asking.questions_per_batch or size,
    )


def _prompting(asking: Asking, policy: Policy) -> DataConfig:
    """How questions are put. max_prompt_tokens: not known yet."""
    own, given = policy.data, {name: getattr(asking, name) for name in PROMPTING}
    if asking.prompt_format not in (None, own.prompt_format):
        # Those of the other format would not fit.
        own = DataConfig(
            train="",
            validation="",
            data_dir=own.data_dir,
            prompt_format=asking.prompt_format,
            stop_tokens=own.stop_tokens,
            max_completion_tokens=own.max_completion_tokens,
        )
    return DataConfig(
        train="",
        validation="",
        test=asking.questions,
        data_dir=own.data_dir if asking.data_dir is None else asking.data_dir,
        **own.prompting | {name: value for name, value in given.items() if value is not None},
        max_completion_tokens=asking.max_completion_tokens or own.max_completion_tokens,
    )


@contextlib.contextmanager
def _naming_options() -> Iterator[None]:
    """Has errors about fields of DataConfig name the options that set them."""
    try:
        yield
    except (ConfigError, ModelError, DataError) as error:
        said = re.sub(rf"\bdata\.({'|'.join(PROMPTING)})\b", r"\1", str(error))
        raise type(error)(said) from error
