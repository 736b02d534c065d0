"""A tokenizer as the files of a Hugging Face folder."""

from __future__ import annotations

from rft_jax.data.tokenizers.base import TOKENIZER_FILES, Tokenizer

_COPIED = (
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files, by name, that give transformers and `tokenizer.load` this tokenizer.

    A published model's are its own. What generation_config.json and config.json say of further EOS
    ids belongs to the model: whoever writes those files takes `tokenizer.eos_ids`. Raises
    ModelError for a SentencePiece model that the format cannot hold.
    """
    from rft_jax.data.tokenizers.sentencepiece_json import hf_files
    from rft_jax.data.tokenizers.sentencepiece_model import SentencePiece

    if isinstance(tokenizer, SentencePiece):
        texts = {name: text.encode() for name, text in hf_files(tokenizer).items()}
        return texts | {"tokenizer.model": tokenizer.processor.serialized_model_proto()}
    paths = [tokenizer.path / name for name in _COPIED]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}
