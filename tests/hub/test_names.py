"""Names and shapes of tensors: those of transformers, and those of the policy."""

from __future__ import annotations

import math
from typing import Any

import jax
import pytest
import reference_models
from published import DEEPSEEK_MATH, PUBLISHED
from reference_models import torch, transformers

from rft_jax.config import ModelConfig
from rft_jax.hub.families import model_config
from rft_jax.hub.names import tensors
from rft_jax.models import transformer


def shapes(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in tensors(config, vocab_size)}


def tree_of(config: ModelConfig, vocab_size: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path -> shape of the parameters that the tensors make up."""
    tree = {}
    for tensor in tensors(config, vocab_size):
        stacked = () if tensor.layer is None else (config.num_layers,)
        tree[tensor.path] = (*stacked, *tensor.param_shape)
    return tree


def policy(config: ModelConfig, vocab_size: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    params = transformer.abstract_params(config=config, vocab_size=vocab_size)
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {tuple(part.key for part in path): leaf.shape for path, leaf in leaves}


def theirs(raw: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of transformers' model, which is not allocated."""
    config = transformers.AutoConfig.for_model(**raw)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


@pytest.mark.parametrize("case", reference_models.CASES)
def test_tiny_models(case: str) -> None:
    model = reference_models.make(case)
    config = model_config(model.config.to_dict())
    found = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert shapes(config, 96) == found
    assert tree_of(config, 96) == policy(config, 96)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name: str) -> None:
    published = PUBLISHED[name]
    config = model_config(published.raw)
    assert shapes(config, config.vocab_size) == theirs(published.raw)
    assert sum(math.prod(shape) for shape in theirs(published.raw).values()) == published.parameters
    assert tree_of(config, config.vocab_size) == policy(config, config.vocab_size)


def test_deepseek_math() -> None:
    """Every parameter of the 7B model, against its published sizes."""
    config = model_config(DEEPSEEK_MATH.raw)
    tree = policy(config, config.vocab_size)
    width, layers, hidden, vocab = 4096, 30, 11008, 102400
    of_block = {
        ("attention_norm", "scale"): (width,),
        ("attention", "query"): (32, 128, width),
        ("attention", "key"): (32, 128, width),
        ("attention", "value"): (32, 128, width),
        ("attention", "output"): (width, 32, 128),
        ("mlp_norm", "scale"): (width,),
        ("mlp", "gate"): (hidden, width),
        ("mlp", "up"): (hidden, width),
        ("mlp", "down"): (width, hidden),
    }
    assert tree == {
        ("embedding",): (vocab, width),
        ("unembedding",): (vocab, width),
        ("final_norm", "scale"): (width,),
        **{("blocks", *path): (layers, *shape) for path, shape in of_block.items()},
    }
    assert sum(map(math.prod, tree.values())) == 6_910_365_696
