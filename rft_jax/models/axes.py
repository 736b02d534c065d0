"""The logical axes of every parameter: the one table from which shardings are derived."""

from __future__ import annotations

from rft_jax.types import Params

AXES: dict[tuple[str, ...], tuple[str | None, ...]] = {
    ("embedding",): ("vocab", "embed"),
    ("unembedding",): ("vocab", "embed"),
    ("final_norm", "scale"): (None,),
    ("blocks", "attention_norm", "scale"): ("layer", None),
    ("blocks", "attention_post_norm", "scale"): ("layer", None),
    ("blocks", "attention", "query_norm", "scale"): ("layer", None),
    ("blocks", "attention", "key_norm", "scale"): ("layer", None),
    ("blocks", "attention", "query"): ("layer", "heads", None, "embed"),
    ("blocks", "attention", "key"): ("layer", "kv_heads", None, "embed"),
    ("blocks", "attention", "value"): ("layer", "kv_heads", None, "embed"),
    ("blocks", "attention", "output"): ("layer", "embed", "heads", None),
    ("blocks", "attention", "query_bias"): ("layer", "heads", None),
    ("blocks", "attention", "key_bias"): ("layer", "kv_heads", None),
    ("blocks", "attention", "value_bias"): ("layer", "kv_heads", None),
    ("blocks", "attention", "query_a"): ("layer", None, "embed"),
    ("blocks", "attention", "query_b"): ("layer", "heads", None, None),
    ("blocks", "attention", "key_a"): ("layer", None, "embed"),
    ("blocks", "attention", "key_b"): ("layer", "kv_heads", None, None),
    ("blocks", "attention", "value_a"): ("layer", None, "embed"),
    ("blocks", "attention", "value_b"): ("layer", "kv_heads", None, None),
    ("blocks", "attention", "output_a"): ("layer", None, "heads", None),
    ("blocks", "attention", "output_b"): ("layer", "embed", None),
    ("blocks", "mlp_norm", "scale"): ("layer", None),
    ("blocks", "mlp_post_norm", "scale"): ("layer", None),
    ("blocks", "mlp", "gate"): ("layer", "mlp", "embed"),
    ("blocks", "mlp", "up"): ("layer", "mlp", "embed"),
    ("blocks", "mlp", "down"): ("layer", "embed", "mlp"),
    ("blocks", "mlp", "gate_a"): ("layer", None, "embed"),
    ("blocks", "mlp", "gate_b"): ("layer", "mlp", None),
    ("blocks", "mlp", "up_a"): ("layer", None, "embed"),
    ("blocks", "mlp", "up_b"): ("layer", "mlp", None),
    ("blocks", "mlp", "down_a"): ("layer", None, "mlp"),
    ("blocks", "mlp", "down_b"): ("layer", "embed", None),
}


def logical_axes(params: Params) -> Params:
    """The tree of `params` with each array replaced by the tuple of its logical axis names.

    Raises KeyError for a parameter the table does not name.
    """

    def walk(node: Params, path: tuple[str, ...]) -> Params:
        if isinstance(node, dict):
            return {name: walk(child, (*path, name)) for name, child in node.items()}
        return AXES[path]

    return walk(params, ())
