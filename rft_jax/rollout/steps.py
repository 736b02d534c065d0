"""The steps of an output, from characters as a checker says them to tokens."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

from rft_jax.data.tokenizers.base import Tokenizer

Steps = tuple[tuple[int, float], ...]
"""(index of the last token, reward) of each step of an output."""


def in_tokens(
    steps: Sequence[tuple[int, float]],
    text: str,
    tokens: Sequence[int],
    tokenizer: Tokenizer,
) -> Steps:
    """Steps by their last tokens.

    A step that ends inside a token ends at that token, and one that ends where the text does at the
    output's last token, EOS included. Steps that end at one token are one, of their mean reward.

    Args:
        steps: (characters of the text up to the end, reward) of each.
        text: of the tokens, but for an EOS.
        tokens: of the output.
        tokenizer: of the tokens.
    """

    @functools.cache
    def settled(place: int) -> int:
        """Characters of the text that the tokens up to this one give, whatever follows them: bytes
        of a character that is not whole yet are U+FFFD until then."""
        start = tokenizer.decode(tokens[: place + 1])
        if text.startswith(start):
            return len(start)
        pairs = enumerate(zip(text, start, strict=False))
        return next((n for n, (a, b) in pairs if a != b), len(text))

    rewards: dict[int, list[float]] = defaultdict(list)
    last, place = len(tokens) - 1, 0
    for end, reward in steps:
        if end < len(text):
            place = max(place, bisect_left(range(last), end, key=settled))
        rewards[last if end >= len(text) else place].append(reward)
    return tuple((place, sum(of_place) / len(of_place)) for place, of_place in rewards.items())
