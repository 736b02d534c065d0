"""How many times longer the steps of a tokenizer.json can make a text. They multiply: nine that
write ten letters for one make gigabytes of a word."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

_FACTORS = {
    "NFC": 4,
    "NFD": 4,
    "NFKC": 18,
    "NFKD": 18,
    "Lowercase": 2,
    "BertNormalizer": 8,
    "ByteLevel": 4,
    "Metaspace": 2,
}
"""The most characters that a step makes of one; of those that are not here it is one, or their
settings say it."""


def growth(tokenizer: Mapping[str, Any]) -> int:
    """The most characters, or tokens beside those of the text, that the parsed tokenizer.json makes
    of one."""
    ways = (("normalizer", "pre_tokenizer"), ("post_processor",), ("decoder",))
    return max(math.prod(_factor(tokenizer.get(part)) for part in way) for way in ways)


def _factor(step: Any) -> int:
    """Of a step, with those inside it."""
    if isinstance(step, list):
        return math.prod(map(_factor, step))
    if not isinstance(step, dict):
        return 1
    kind = step.get("type")
    if kind == "Sequence":
        return math.prod(_factor(one) for one in step.values())
    if kind == "Replace":
        pattern, content = step["pattern"], len(step["content"])
        # An expression may match nothing, between any two characters.
        length = len(pattern.get("String", ""))
        return max(1, -(-content // length)) if length else 1 + content
    if kind == "Prepend":
        return 1 + len(step["prepend"])
    if kind == "Precompiled":
        charsmap = base64.b64decode(step["precompiled_charsmap"] or "")
        texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0")
        return max(1, *(len(text.decode(errors="replace")) for text in texts))
    if kind == "TemplateProcessing":
        ids = {name: len(token["ids"]) for name, token in step["special_tokens"].items()}
        pieces = (piece.get("SpecialToken") for piece in step["single"])
        return max(1, sum(ids[piece["id"]] if piece else 1 for piece in pieces))
    return _FACTORS.get(kind, 1) if isinstance(kind, str) else 1
