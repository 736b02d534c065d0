"""THE table of methods: each a row of DeepSeekMath's eq. 5 (rft_jax/config/method.py).

`rft-jax methods` prints it; docs/methods.md says where papers and released code differ. A row with
settings of its own is a function here, such as `grpo(ddof=0)`: put what it returns into the
experiment file. Loads neither jax nor numpy: a config asks for its row.

In formulas r is the reward, I(o) in most runs; over the G decided outputs of a question r_mean and
r_std are its mean and standard deviation, and K counts the correct ones. r_j is the reward of a
step; r_mean and r_std are then of all steps of the G outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from rft_jax.config.fields import require
from rft_jax.config.method import Coefficient, Method, Ratio
from rft_jax.types import Facts, Sample, Verdict

if TYPE_CHECKING:
    import numpy as np

Overlong = Literal["soft", "mask", "none"]


def one(facts: Facts) -> np.ndarray:
    """GC = 1 (eq. 7): every output is imitated."""
    import numpy as np

    return np.ones(len(facts.correct), np.float32)


def indicator(facts: Facts) -> np.ndarray:
    """GC = I(o) (eq. 10 and 11): correct outputs are reinforced alike, others not at all."""
    return facts.correct.astype("float32")


def group_means(values: np.ndarray, facts: Facts) -> np.ndarray:
    """For each output the mean of `values` over its question's."""
    import numpy as np

    _, group = np.unique(facts.question_ids, return_inverse=True)
    return (np.bincount(group, values) / np.bincount(group))[group]


def is_mixed(facts: Facts) -> np.ndarray:
    """Whether the output's question has both correct and incorrect ones: 0 < K < G."""
    share = group_means(facts.correct.astype(float), facts)
    return (share > 0) & (share < 1)


def signed(facts: Facts, *, positive: float = 1.0, negative: float = -1.0) -> np.ndarray:
    """One coefficient for correct outputs, another for incorrect ones."""
    import numpy as np

    return np.where(facts.correct, positive, negative)


def centred(facts: Facts) -> np.ndarray:
    """r - r_mean, exactly 0 where all rewards of a question are equal."""
    return _centred(facts.rewards, facts)


def _centred(rewards: np.ndarray, facts: Facts) -> np.ndarray:
    import numpy as np

    _, group = np.unique(facts.question_ids, return_inverse=True)
    least, greatest = np.full(group.max() + 1, np.inf), np.full(group.max() + 1, -np.inf)
    np.minimum.at(least, group, rewards)
    np.maximum.at(greatest, group, rewards)
    return np.where((least == greatest)[group], 0.0, rewards - group_means(rewards, facts))


def leave_one_out(facts: Facts) -> np.ndarray:
    """r minus the mean of the question's other outputs, which is G / (G - 1) (r - r_mean); 0 for
    an output that has none."""
    import numpy as np

    _, group, counts = np.unique(facts.question_ids, return_inverse=True, return_counts=True)
    sizes = counts[group]
    return centred(facts) * sizes / np.maximum(sizes - 1, 1)


def normalized(facts: Facts, *, ddof: int = 1, epsilon: float = 1e-6) -> np.ndarray:
    """(r - r_mean) / (r_std + epsilon) (eq. 3); 0 where all rewards of a question are equal.

    ddof: r_std divides by G - ddof; the paper does not say which.
    """
    return _normalized(facts.rewards, facts, ddof, epsilon)


def _normalized(rewards: np.ndarray, facts: Facts, ddof: int, epsilon: float) -> np.ndarray:
    import numpy as np

    _, group, counts = np.unique(facts.question_ids, return_inverse=True, return_counts=True)
    apart = _centred(rewards, facts)
    squares = np.bincount(group, apart**2)
    return apart / (np.sqrt(squares / np.maximum(counts - ddof, 1)) + epsilon)[group]


def process(facts: Facts, *, ddof: int = 1, epsilon: float = 1e-6) -> np.ndarray:
    """Of each token, the sum of (r - r_mean) / (r_std + epsilon) over the steps that end at it or
    later (section 4.1.3), r_mean and r_std of all steps of the question's outputs; 0 where the
    rewards of all these are equal. ddof: as of `normalized`.
    """
    import numpy as np

    assert facts.step_rewards is not None
    ends = ~np.isnan(facts.step_rewards)
    of_steps = facts._replace(question_ids=facts.question_ids[np.nonzero(ends)[0]])
    found = np.zeros(ends.shape)
    found[ends] = _normalized(facts.step_rewards[ends], of_steps, ddof, epsilon)
    return found[:, ::-1].cumsum(axis=1)[:, ::-1]


def over_mean(facts: Facts, *, baseline: bool) -> np.ndarray:
    """(r - r_mean) / r_mean, or r / r_mean without the baseline; 0 where r_mean is 0. What is
    divided by is without the KL in the reward, which could make it negative."""
    import numpy as np

    taken = 0.0 if facts.penalties is None else facts.penalties.sum(axis=1)
    means = group_means(facts.rewards + taken, facts)
    above = centred(facts) if baseline else facts.rewards
    return np.divide(above, means, out=np.zeros_like(means), where=means != 0)


def preference(facts: Facts, *, beta: float, per_token: bool) -> np.ndarray:
    """The gradient of log sigmoid(h), h = s+ - s-, over all pairs of a correct and an incorrect
    output of a question, where s = beta log pi_theta / pi_ref, over |o| if per_token (eq. 12).

    G / (K (G - K)) times the sum of beta sigmoid(-h) over an output's pairs, negative for incorrect
    ones, so that the mean over outputs is that of the questions' pairs; 0 without a pair.
    """
    import numpy as np
    from scipy.special import expit

    assert facts.log_ratios is not None
    scores = beta * facts.log_ratios / (facts.lengths if per_token else 1.0)
    found = np.zeros(len(scores))
    for question in np.unique(facts.question_ids):
        of_question = facts.question_ids == question
        correct = np.flatnonzero(of_question & facts.correct)
        wrong = np.flatnonzero(of_question & ~facts.correct)
        if not (len(correct) and len(wrong)):
            continue
        slopes = beta * expit(scores[wrong] - scores[correct][:, None])
        scale = (len(correct) + len(wrong)) / slopes.size
        found[correct], found[wrong] = scale * slopes.sum(axis=1), -scale * slopes.sum(axis=0)
    return found


def advantages(facts: Facts, *, whiten: bool) -> np.ndarray:
    """A_t over the value function (eq. 15 to 18), over all tokens with mean 0 and deviation 1 if
    whitened."""
    import numpy as np

    assert facts.advantages is not None
    if not whiten:
        return facts.advantages
    alive = np.arange(facts.advantages.shape[1]) < facts.lengths[:, None]
    of_tokens = facts.advantages[alive]
    deviation = of_tokens.std() if len(of_tokens) else 0.0
    return np.where(alive, (facts.advantages - of_tokens.mean()) / (deviation + 1e-8), 0.0)


def on_mixed_groups(coefficient: Coefficient, facts: Facts) -> np.ndarray:
    """The coefficient where 0 < K < G, else 0."""
    import numpy as np

    return np.where(is_mixed(facts), coefficient(facts), 0.0)


def overlong(lengths: np.ndarray, limit: int, cache: int) -> np.ndarray:
    """DAPO's soft punishment by length in tokens (eq. 13): 0 up to limit - cache, from there
    linearly to -1 at the limit."""
    import numpy as np

    return -np.clip((lengths - (limit - cache)) / cache, 0.0, 1.0)


def dapo_coefficient(facts: Facts, *, overlong_outputs: Overlong, ddof: int = 1) -> np.ndarray:
    """GRPO's on mixed groups, with what DAPO does to long outputs."""
    import numpy as np

    rewards = facts.rewards
    if overlong_outputs == "soft":
        rewards = rewards + overlong(facts.lengths, facts.limit, max(1, facts.limit // 5))
    found = np.where(is_mixed(facts), _normalized(rewards, facts, ddof, 1e-6), 0.0)
    return found if overlong_outputs != "mask" else np.where(facts.finished, found, 0.0)


def w_reinforce(weight: float = 0.1) -> Method:
    """W-REINFORCE with this weight on correct outputs (the paper's lambda)."""
    require(math.isfinite(weight), f"w_reinforce: weight is {weight}: a finite number is expected.")
    return Method(
        "policy", "decided", partial(signed, positive=weight), "w_reinforce",
        "weighted REINFORCE: little weight on correct outputs (arXiv 2506.01347, eq. 9)",
        "constant", Ratio(), equation="arXiv 2506.01347, 9",
        formula=f"{weight:g} if correct, -1 if not",
    )  # fmt: skip


def _check_deviation(name: str, ddof: int, epsilon: float) -> None:
    require(ddof in (0, 1), f"{name}: ddof is {ddof}: it must be 0 or 1.")
    require(
        0 <= epsilon < math.inf, f"{name}: epsilon is {epsilon}: it must be a number from 0 up."
    )


def grpo(ddof: int = 1, epsilon: float = 1e-6) -> Method:
    """GRPO with outcome rewards. ddof, epsilon: of the standard deviation."""
    _check_deviation("grpo", ddof, epsilon)
    return Method(
        "policy", "decided", partial(normalized, ddof=ddof, epsilon=epsilon), "grpo",
        "group relative policy optimisation, outcome rewards (DeepSeekMath, eq. 19 to 21)",
        "sampled", Ratio(), group=True, rewards=True, equation="DeepSeekMath 19 to 21",
        formula="(r - r_mean) / r_std", kl="k3 in the loss, 0.04",
    )  # fmt: skip


def grpo_process(ddof: int = 1, epsilon: float = 1e-6) -> Method:
    """GRPO with rewards of steps, as a checker says them. ddof, epsilon: as of `grpo`."""
    _check_deviation("grpo_process", ddof, epsilon)
    return Method(
        "policy", "decided", partial(process, ddof=ddof, epsilon=epsilon), "grpo_process",
        "group relative policy optimisation, rewards of steps (DeepSeekMath, section 4.1.3)",
        "sampled", Ratio(), group=True, rewards=True, steps=True,
        equation="DeepSeekMath 4.1.3",
        formula="sum of (r_j - r_mean) / r_std over steps j that end at t or later",
        kl="k3 in the loss, 0.04",
    )  # fmt: skip


def dapo(overlong_outputs: Overlong = "soft") -> Method:
    """DAPO; overlong_outputs: punished softly over the last fifth of the limit, as in the paper's
    final recipe, masked where they were cut, or neither."""
    choices = get_args(Overlong)
    require(
        overlong_outputs in choices,
        f"dapo: overlong_outputs is {overlong_outputs!r}: one of {', '.join(choices)} is expected.",
    )
    how = {"soft": ", r less the overlong punishment", "mask": ", 0 if cut", "none": ""}
    return Method(
        "policy", "decided", partial(dapo_coefficient, overlong_outputs=overlong_outputs), "dapo",
        "decoupled clip, tokens alike, mixed groups only (DAPO, arXiv 2503.14476, eq. 8 to 13)",
        "tokens", Ratio(high=0.28), group=True, rewards=True, equation="arXiv 2503.14476, 8 to 13",
        formula="(r - r_mean) / r_std if 0 < K < G" + how[overlong_outputs],
    )  # fmt: skip


def ppo(*, whiten: bool = False) -> Method:
    """PPO with a value function of its own, whose settings are the section `critic`.

    whiten: advantages to mean 0 and deviation 1, which the field adds to the paper.
    """
    return Method(
        "policy", "decided", partial(advantages, whiten=whiten), "ppo",
        "proximal policy optimisation with a value function (DeepSeekMath, eq. 15 to 18; arXiv "
        "1707.06347)",
        "sampled", Ratio(), rewards=True, values=True, equation="DeepSeekMath 15 to 18",
        formula="A_t of GAE" + (", whitened" if whiten else ""), kl="k1 in the reward",
    )  # fmt: skip


def dpo(beta: float = 0.1, *, online: bool = False, per_token: bool = True) -> Method:
    """Direct preference optimisation on all pairs of a correct and an incorrect output.

    beta: of eq. 12; online: on outputs of the current policy; per_token: log-ratios are means over
    an output's tokens, as in eq. 12, or sums, as in arXiv 2305.18290.
    """
    require(0 < beta < math.inf, f"dpo: beta is {beta}: it must be a positive number.")
    name = "online_dpo" if online else "dpo"
    if per_token:
        about, equation = "DeepSeekMath, eq. 12, whose printed gradients 13 and 14 differ", "12"
    else:
        about, equation = "arXiv 2305.18290, eq. 7", ""
    return Method(
        "policy" if online else "pool", "decided",
        partial(preference, beta=beta, per_token=per_token), name,
        "direct preference optimisation on correct and incorrect outputs of "
        f"{'the current policy' if online else 'the frozen start'} ({about})",
        "sampled" if per_token else "constant", group=True, log_ratios=True,
        equation=f"DeepSeekMath {equation}" if equation else "arXiv 2305.18290, 7",
        formula=f"{beta:g} sigmoid(s- - s+) over pairs, negative if wrong", kl="in GC",
    )  # fmt: skip


_REJ: Callable[[Facts], np.ndarray] = partial(on_mixed_groups, signed)
_REJ_RELEASED: Callable[[Facts], np.ndarray] = partial(on_mixed_groups, indicator)

METHODS: dict[str, Method] = {
    "sft": Method(
        "demonstrations", "accepted", one, "sft",
        "supervised fine-tuning on demonstrations (DeepSeekMath, eq. 6 and 7)",
        equation="DeepSeekMath 6, 7", formula="1",
    ),
    "rft": Method(
        "pool", "accepted", indicator, "rft",
        "rejection-sampling fine-tuning (RFT), on outputs of the frozen start that reach the "
        "reference answer (DeepSeekMath, eq. 8 to 10)",
        equation="DeepSeekMath 8 to 10", formula="I(o)",
    ),
    "online_rft": Method(
        "policy", "accepted", indicator, "online_rft",
        "online rejection-sampling fine-tuning (Online RFT), on outputs of the current policy "
        "that reach the reference answer (DeepSeekMath, eq. 11)",
        equation="DeepSeekMath 11", formula="I(o)",
    ),
    "raft++": Method(
        "policy", "accepted", indicator, "raft++",
        "RAFT with an importance ratio and a clip (RAFT++, arXiv 2504.11343)",
        "tokens", Ratio(), equation="arXiv 2504.11343", formula="I(o)",
    ),
    "psr": Method(
        "policy", "accepted", indicator, "psr",
        "positive sample reinforcement (PSR, arXiv 2506.01347)",
        "constant", Ratio(), equation="arXiv 2506.01347", formula="I(o)",
    ),
    "nsr": Method(
        "policy", "decided", partial(signed, positive=0.0), "nsr",
        "negative sample reinforcement (NSR, arXiv 2506.01347)",
        "constant", Ratio(), equation="arXiv 2506.01347", formula="0 if correct, -1 if not",
    ),
    "w_reinforce": w_reinforce(),
    "reinforce": Method(
        "policy", "decided", centred, "reinforce",
        "REINFORCE with the question's mean reward as a baseline",
        group=True, rewards=True, formula="r - r_mean",
    ),
    "rloo": Method(
        "policy", "decided", leave_one_out, "rloo",
        "REINFORCE leave-one-out (RLOO, arXiv 2402.14740)",
        "constant", Ratio("output"), group=True, rewards=True, equation="arXiv 2402.14740",
        formula="G / (G - 1) (r - r_mean)",
    ),
    "reinforce_rej": Method(
        "policy", "decided", _REJ, "reinforce_rej",
        "REINFORCE on mixed groups (Reinforce-Rej, arXiv 2504.11343, as the paper has it)",
        "tokens", Ratio(), group=True, equation="arXiv 2504.11343",
        formula="1 if correct, -1 if not, if 0 < K < G",
    ),
    "reinforce_rej_released": Method(
        "policy", "accepted", _REJ_RELEASED, "reinforce_rej_released",
        "the same with rewards 0 and 1, as the released code has it: correct outputs of mixed "
        "groups (arXiv 2504.11343)",
        "tokens", Ratio(), group=True, equation="arXiv 2504.11343",
        formula="I(o) if 0 < K < G",
    ),
    "ppo": ppo(),
    "grpo": grpo(),
    "grpo_process": grpo_process(),
    "dr_grpo": Method(
        "policy", "decided", centred, "dr_grpo",
        "GRPO without its biases of length and difficulty (Dr. GRPO, arXiv 2503.20783)",
        "constant", Ratio(), group=True, rewards=True, equation="arXiv 2503.20783",
        formula="r - r_mean",
    ),
    "dapo": dapo(),
    "gspo": Method(
        "policy", "decided", normalized, "gspo",
        "group sequence policy optimisation, one ratio a sequence (GSPO, arXiv 2507.18071)",
        "sampled", Ratio("sequence", low=3e-4, high=4e-4), group=True, rewards=True,
        equation="arXiv 2507.18071", formula="(r - r_mean) / r_std",
    ),
    "cispo": Method(
        "policy", "decided", normalized, "cispo",
        "a clipped weight in place of a clipped objective (CISPO, arXiv 2506.13585)",
        "tokens", Ratio(how="weight", low=1.0, high=4.0), group=True, rewards=True,
        equation="arXiv 2506.13585", formula="(r - r_mean) / r_std",
    ),
    "maxrl": Method(
        "policy", "decided", partial(over_mean, baseline=True), "maxrl",
        "maximum-likelihood reinforcement learning of order G - 1, with a baseline (MaxRL, arXiv "
        "2602.02710)",
        "constant", Ratio(), group=True, rewards=True, equation="arXiv 2602.02710",
        formula="(r - r_mean) / r_mean",
    ),
    "maxrl_positive": Method(
        "policy", "accepted", partial(over_mean, baseline=False), "maxrl_positive",
        "the same of order G without the baseline: Online RFT whose questions count alike (MaxRL, "
        "arXiv 2602.02710)",
        "constant", Ratio(), group=True, rewards=True, equation="arXiv 2602.02710",
        formula="r / r_mean",
    ),
    "dpo": dpo(),
    "online_dpo": dpo(online=True),
    "topr": Method(
        "pool", "decided", signed, "topr",
        "incorrect outputs of an older policy with a truncated importance weight (TOPR, arXiv "
        "2503.14286)",
        "constant", Ratio("output", "weight", low=1.0, high=0.0, of="negatives"),
        equation="arXiv 2503.14286", formula="1 if correct, -min(pi_theta / pi_sft, 1) if not",
    ),
}  # fmt: skip


def is_trained(method: Method, sample: Sample) -> bool:
    """Whether the method may train on an output: what crosses hosts whole."""
    if method.trains_on == "accepted":
        return sample.accepted
    return sample.verdict is not Verdict.UNDECIDED
