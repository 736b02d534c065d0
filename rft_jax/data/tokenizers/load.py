"""Loading a tokenizer, of either kind."""

from __future__ import annotations

from rft_jax.data.tokenizers.base import Tokenizer
from rft_jax.io.paths import Folder, folder_of


def load(path: str | Folder) -> Tokenizer:
    """The tokenizer of a SentencePiece `.model` file, or of a folder in the Hugging Face format.

    decode(encode(text)) == text for every text that UTF-8 can hold, where the tokenizer is one of
    `sentencepiece_model.train`. Somebody else's loses what its makers had it lose: with Unicode's
    NFC (Qwen) composed characters replace others, and a SentencePiece model takes U+2581 for a
    space. One with a dummy prefix (Llama 2, Mistral) puts a space in front of each text it encodes
    and takes the first one off again when it decodes: what was encoded apart, as a prompt and its
    output are, decodes together with a space between; some of them lose a text's own first space.
    Other spaces, and newlines, survive, or the tokenizer is refused. Raises ModelError when it
    cannot serve.
    """
    # Imported here: a run needs one of them.
    path = folder_of(path)
    if path.is_dir():
        from rft_jax.data.tokenizers import huggingface

        return huggingface.load_folder(path)
    from rft_jax.data.tokenizers import sentencepiece_model

    return sentencepiece_model.load_model(path)
