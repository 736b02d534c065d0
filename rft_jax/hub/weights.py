"""The weights of a published model, checked against the model that is to take them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rft_jax.config import ModelConfig
from rft_jax.errors import ModelError
from rft_jax.hub import tensors as files
from rft_jax.hub.names import Tensor, ignorable, num_layers, of_text, tensors
from rft_jax.hub.tensors import DTYPES, Header

logger = logging.getLogger(__name__)

EMBEDDING, UNEMBEDDING = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Weights:
    """Tensors that a model needs, all of which are in the files. Made by `open_weights`.

    copies: tensors that must hold what another does (a tied lm_head), by its name.
    """

    folder: Path
    tensors: tuple[Tensor, ...]
    headers: Mapping[str, Header]
    copies: Mapping[str, str]

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


def open_weights(folder: Path, config: ModelConfig, vocab_size: int) -> Weights:
    """The weights in a folder, by their headers.

    Args:
        config: of the model that is to take them.
        vocab_size: rows of its embedding.

    Raises ModelError, naming tensor and file, when one is missing, has another shape or a
    type that cannot be read, and for a tensor that has no place in the model.
    """
    held = _of_text(files.headers(folder), folder)
    layers = num_layers(held)
    if 0 < layers < config.num_layers:  # before there is a list of as many as config.json says
        raise ModelError(
            f"{folder}: its safetensors files hold {layers} layers, and num_hidden_layers of "
            f"config.json, model.num_layers, is {config.num_layers}: copy or download it again."
        )
    wanted = {tensor.name: tensor.shape for tensor in tensors(config, vocab_size)}
    missing = [name for name in wanted if name not in held]
    if missing:
        raise ModelError(
            f"{folder}: {_several(missing)} missing from its safetensors files: copy or download "
            "it again, or use the model.* of its config.json."
        )
    copies = {}
    if config.tie_embeddings and UNEMBEDDING in held:
        wanted[UNEMBEDDING] = wanted[EMBEDDING]
        copies[UNEMBEDDING] = EMBEDDING
    extra = [name for name in held if name not in wanted and not ignorable(name)]
    if extra:
        raise ModelError(
            f"{held[extra[0]].file}: {_several(extra)} without a place in this model: use the "
            "model.* of its config.json, or a model of a family that has no more."
        )
    for name, shape in wanted.items():
        file, dtype, saved, _ = held[name]
        if saved != shape:
            raise ModelError(
                f"{file}: tensor {name} is {list(saved)}, expected {list(shape)}: use the model.* "
                "of its config.json, model.vocab_size included."
            )
        if dtype not in DTYPES:
            raise ModelError(
                f"{file}: tensor {name} is of type {dtype}, expected {', '.join(DTYPES)}: use a "
                "model that is not quantised."
            )
    return Weights(folder, tensors(config, vocab_size), {n: held[n] for n in wanted}, copies)


def _of_text(held: dict[str, Header], folder: Path) -> dict[str, Header]:
    """The tensors of text, by the names that they have in a model of nothing else."""
    names = of_text(held)
    if not names:
        return held
    logger.info(
        "%s: %d tensors of text are used, %d of images are left out",
        folder, len(names), len(held) - len(names),
    )  # fmt: skip
    return {name: held[inside]._replace(name=inside) for name, inside in names.items()}


def _several(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
    return f"tensor {names[0]}{more}"


def check_values(weights: Weights) -> None:
    """Raise ModelError, naming tensor and file, for a NaN or infinity, and for a tied
    lm_head that is no copy of the embedding. Reads everything once."""
    files.check_finite(weights.headers)
    for name, other in weights.copies.items():
        held, source = weights.headers[name], weights.headers[other]
        if not files.same_bits(held, name, source, other):
            raise ModelError(
                f"{held.file}: tensor {name} differs from {other}, and "
                "tie_word_embeddings says they are one: set it to false in config.json, and "
                "model.tie_embeddings to False, to use both."
            )


def read_part(weights: Weights, tensor: Tensor, index: tuple[slice, ...]) -> np.ndarray:
    """A part of a parameter, or of one layer of it, in the file's type.

    Reads only the tensor's rows and columns that hold it.

    Args:
        index: a slice for each axis of `tensor.param_shape`.
    """
    outer, inner, shape = [], [], []
    axes = iter(index)
    for group in tensor.groups:
        first, *joined = (next(axes).indices(size) for size in group)
        width = math.prod(group[1:])
        outer.append(slice(first[0] * width, first[1] * width))
        shape += [first[1] - first[0], *group[1:]]
        inner += [slice(None), *(slice(start, stop) for start, stop, _ in joined)]
    part = files.read(weights.headers[tensor.name], tensor.name, *outer)
    return part.reshape(shape)[tuple(inner)]
