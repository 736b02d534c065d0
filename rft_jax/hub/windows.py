"""Which layers have a sliding window, in config.json: a list of layer types, or a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rft_jax.config import ModelConfig
from rft_jax.errors import ModelError
from rft_jax.hub.values import Raw, refusal, truth, whole

FULL, SLIDING = "full_attention", "sliding_attention"


def read(raw: Raw) -> dict[str, Any]:
    """sliding_window and global_every of ModelConfig.

    raw: config.json of a family that has windows, with the family's defaults filled in.
    """
    window = 0
    if raw.get("sliding_window") is not None and _used(raw):
        window = whole(raw, "sliding_window")
    types = raw.get("layer_types")
    if types is None:
        types = _by_rule(raw)
    elif not isinstance(types, list) or not all(kind in (FULL, SLIDING) for kind in types):
        raise refusal("layer_types", types, f"a list of {FULL} and {SLIDING}")
    elif len(types) != (count := whole(raw, "num_hidden_layers")):
        raise refusal("layer_types", types, f"an entry for each of {count} layers")
    every = _global_every(types) if window else 0
    if not window or every == 1:
        return {"sliding_window": 0, "global_every": 0}
    return {"sliding_window": window, "global_every": every}


def _used(raw: Raw) -> bool:
    """Qwen has a window only if it says so."""
    return truth(raw, "use_sliding_window") if "use_sliding_window" in raw else True


def _by_rule(raw: Raw) -> list[str]:
    """The layer types where config.json has no list of them."""
    count = whole(raw, "num_hidden_layers")
    if "max_window_layers" in raw:  # Qwen: the first so many layers have no window
        first = whole(raw, "max_window_layers")
        return [SLIDING if layer >= first else FULL for layer in range(count)]
    # Gemma: every so manyth is full; Mistral: none.
    every = whole(raw, "sliding_window_pattern") if "sliding_window_pattern" in raw else 0
    return [SLIDING if not every or (i + 1) % every else FULL for i in range(count)]


def _global_every(types: Sequence[str]) -> int:
    """Every so manyth layer is full; 0 for none. Raises ModelError for any other order."""
    if FULL not in types:
        return 0
    every = types.index(FULL) + 1
    if any((kind == FULL) != ((i + 1) % every == 0) for i, kind in enumerate(types)):
        shown = "".join("f" if kind == FULL else "s" for kind in types)
        raise ModelError(
            f"config.json: its layers are {shown} (f: {FULL}, s: {SLIDING}), and only models whose "
            "every so manyth layer is full, or none, can be served: choose another model."
        )
    return every


def layer_types(config: ModelConfig) -> list[str]:
    """The type of every layer, as config.json lists them."""
    return [FULL if config.sees_all(layer) else SLIDING for layer in range(config.num_layers)]
