"""The logical axes of every parameter: the one table from which shardings are derived."""

from __future__ import annotations

from rft_jax.types import Params

_MATRICES = {
    ("attention", "query"): (("heads", None), ("embed",)),
    ("attention", "key"): (("kv_heads", None), ("embed",)),
    ("attention", "value"): (("kv_heads", None), ("embed",)),
    ("attention", "output"): (("embed",), ("heads", None)),
    ("mlp", "gate"): (("mlp",), ("embed",)),
    ("mlp", "up"): (("mlp",), ("embed",)),
    ("mlp", "down"): (("embed",), ("mlp",)),
}
"""The matrices of a block: (axes of outputs, axes of inputs)."""

AXES: dict[tuple[str, ...], tuple[str | None, ...]] = {
    ("embedding",): ("vocab", "embed"),
    ("unembedding",): ("vocab", "embed"),
    ("final_norm", "scale"): (None,),
    ("blocks", "attention_norm", "scale"): ("layer", None),
    ("blocks", "attention_post_norm", "scale"): ("layer", None),
    ("blocks", "attention", "query_norm", "scale"): ("layer", None),
    ("blocks", "attention", "key_norm", "scale"): ("layer", None),
    ("blocks", "attention", "query_bias"): ("layer", "heads", None),
    ("blocks", "attention", "key_bias"): ("layer", "kv_heads", None),
    ("blocks", "attention", "value_bias"): ("layer", "kv_heads", None),
    ("blocks", "mlp_norm", "scale"): ("layer", None),
    ("blocks", "mlp_post_norm", "scale"): ("layer", None),
}
for (_part, _name), (_outputs, _inputs) in _MATRICES.items():
    AXES["blocks", _part, _name] = ("layer", *_outputs, *_inputs)
    AXES["blocks", _part, f"{_name}_a"] = ("layer", None, *_inputs)
    AXES["blocks", _part, f"{_name}_b"] = ("layer", *_outputs, None)


def logical_axes(params: Params) -> Params:
    """The tree of `params` with each array replaced by the tuple of its logical axis names.

    Raises KeyError for a parameter the table does not name.
    """

    def walk(node: Params, path: tuple[str, ...]) -> Params:
        if isinstance(node, dict):
            return {name: walk(child, (*path, name)) for name, child in node.items()}
        return AXES[path]

    return walk(params, ())
