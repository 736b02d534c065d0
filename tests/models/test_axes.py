"""The table of logical axes names every parameter once, and nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
import tiny

from rft_jax.config.model import LORA_TARGETS
from rft_jax.distributed.mesh import RULES
from rft_jax.models import transformer
from rft_jax.models.axes import AXES, logical_axes


def _paths(tied: bool) -> dict[tuple[str, ...], tuple[int, ...]]:
    config = tiny.model(
        tie_embeddings=tied, qkv_bias=True, qk_norm=True, post_norms=True,
        lora_rank=3, lora_alpha=3.0, lora_targets=LORA_TARGETS,
    )  # fmt: skip
    shapes = transformer.abstract_params(config=config, vocab_size=12)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return {tuple(part.key for part in path): leaf.shape for path, leaf in leaves}


def test_every_parameter_has_one_entry_and_every_entry_a_parameter() -> None:
    assert set(_paths(tied=False)) == set(AXES)
    assert set(_paths(tied=True)) == set(AXES) - {("unembedding",)}


def test_an_entry_names_every_dimension_of_its_parameter() -> None:
    sizes = {"vocab": 12, "embed": 16, "layer": 2, "heads": 2, "kv_heads": 1, "mlp": 24}
    for path, shape in _paths(tied=False).items():
        assert len(AXES[path]) == len(shape), path
        for name, size in zip(AXES[path], shape, strict=True):
            assert name is None or sizes[name] == size, path


def test_every_name_has_a_rule_and_every_rule_is_in_use() -> None:
    assert {name for names in AXES.values() for name in names if name} == set(RULES)


def test_the_tree_of_names_has_the_shape_of_the_parameters() -> None:
    shapes = transformer.abstract_params(config=tiny.model(), vocab_size=12)
    found = logical_axes(shapes)
    assert found["blocks"]["mlp"]["down"] == ("layer", "embed", "mlp")
    assert jax.tree.structure(
        found, is_leaf=lambda node: isinstance(node, tuple)
    ) == jax.tree.structure(shapes)


def test_a_parameter_without_an_entry_is_an_error_that_names_it() -> None:
    with pytest.raises(KeyError, match=r"\('blocks', 'attention', 'bias'\)"):
        logical_axes({"blocks": {"attention": {"bias": jnp.zeros(3)}}})
