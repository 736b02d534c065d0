"""Folders of tokenizers such as published models have, made on the spot, and transformers' readings
of them: references that share no code with rft_jax."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from rft_jax.data.arithmetic import problems

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
"""How the two cut a text into words: the patterns are part of their formats."""

CHATML = (
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n"
    "{%- else %}\n"
    "    {{- '<|im_start|>system\\nSolve it.<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- for message in messages if message.role != 'system' %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)
LLAMA3_CHAT = (
    "{% set first = namespace(done=false) %}\n"
    "{% for m in messages %}\n"
    "{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' %}\n"
    "{% set text = text + m['content'] | trim + '<|eot_id|>' %}\n"
    "{% if not first.done %}{% set text = bos_token + text %}{% set first.done = true %}{% endif %}"
    "{{ text }}{% endfor %}\n"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system message here') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must take turns') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "<start_of_turn>{{ role }}\n{{ message['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL_CHAT = (
    "{%- set rest = messages -%}{%- set before = '' -%}\n"
    "{%- if messages[0].role == 'system' -%}\n"
    "  {%- set before = messages[0].content + '\\n\\n' -%}{%- set rest = messages[1:] -%}\n"
    "{%- endif -%}\n"
    "{{- bos_token }}\n"
    "{%- for turn in rest -%}\n"
    "  {%- if turn.role == 'user' -%}\n"
    "    {{- '[INST] ' ~ (before if loop.last else '') ~ turn.content ~ ' [/INST]' -}}\n"
    "  {%- elif turn.role == 'assistant' -%}\n"
    "    {%- generation -%}{{- ' ' ~ turn.content ~ eos_token -}}{%- endgeneration -%}\n"
    "  {%- else -%}{{- raise_exception('role ' ~ turn.role | tojson) -}}{%- endif -%}\n"
    "{%- endfor -%}"
)
"""Written for these tests in the manner of the models."""

ODD_TEXTS = (
    "", " ", "  ", "a", " a", "a ", "  leading, trailing  ", "two  spaces\t\ttabs\n\n\nlines\r\n",
    "\r\n", "\t", "\n", " \n \n", "\0", "a\0b", "\x0b\x0c\x1c\x85\u2028\u2029",
    "0123456789", "12 345,678.90", "3*6=18\n#### 18", r"\frac{1}{2} \le \sqrt{\pi}^{2}_{i} \\ $x$",
    # Emoji, one of them joined of four, one a flag; combining marks.
    "\U0001f600", "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f1eb\U0001f1f7", "e\u0301 \u00e9 \ufb01 \u00bd \u2126", "a\u0300\u0301\u0302\u0303",
    # Chinese, Japanese, Korean twice, Arabic, Hebrew, Thai.
    "\u4f60\u597d\uff0c\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f\u30fc", "\uc548\ub155",
    "\u1112\u1161\u11ab", "\u0634\u0643\u0631\u0627", "\u05e9\u05dc\u05d5\u05dd (\u202eabc\u202c)",
    "\u0e2a\u0e27\u0e31\u0e2a", "\u2581", "\u2581a", "a\u2581b \u2581", "\ufeff\ufffd\U0010ffff",
    "<s>", "</s>", "<s>a</s> <pad><unk>", "<|im_start|>user\nHi<|im_end|>", "a<|endoftext|>b",
    "<|eot_id|> <|begin_of_text|>x", "<start_of_turn>user\n<end_of_turn>", "<0x41>", "<0x0A>",
    "[INST] x [/INST]", "<|im_start", "<tool>a</tool>", "I'll don't WE'RE", " <s> a",
    "Mia has 12 shells. She buys 3 bags of 6 and loses 5.",
)  # fmt: skip


def corpus() -> list[str]:
    """Word problems, and a little of everything else so that some pieces are not English."""
    texts = [text for p in problems(5, 150) for text in (p.question + "\n", p.solution + "\n\n")]
    return texts + [text for text in ODD_TEXTS if "\0" not in text and "<" not in text] * 4


def qwen(folder: Path) -> Path:
    """Bytes in the manner of Qwen 2: NFC, single digits, no BOS, two EOS ids."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = _of_bytes(QWEN_SPLIT, special)
    made.normalizer = normalizers.NFC()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("</tool>")])
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    config = _config(made, "Qwen2Tokenizer", names) | {
        "add_bos_token": False, "chat_template": CHATML, "bos_token": None,
    }  # fmt: skip
    ends = [made.token_to_id("<|im_end|>"), made.token_to_id("<|endoftext|>")]
    _write(folder, made, config, {"generation_config.json": {"eos_token_id": ends}})
    _write_json(folder / "config.json", {"eos_token_id": ends[1]})
    return folder


def llama3(folder: Path) -> Path:
    """Bytes in the manner of Llama 3: a post-processor that adds BOS, whole words first."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"]
    special += ["<|end_header_id|>", "<|eot_id|>"]
    made = _of_bytes(LLAMA3_SPLIT, special, ignore_merges=True)
    bos = made.token_to_id("<|begin_of_text|>")
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", bos)],
    )
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    config = _config(made, "PreTrainedTokenizerFast", names)
    ends = [made.token_to_id("<|end_of_text|>"), made.token_to_id("<|eot_id|>")]
    _write(folder, made, config, {"generation_config.json": {"eos_token_id": ends}})
    (folder / "chat_template.jinja").write_text(LLAMA3_CHAT, encoding="utf-8")
    return folder


def gemma(folder: Path) -> Path:
    """Characters, and bytes for what has none, in the manner of Gemma."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    first = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    first.normalizer = normalizers.Replace(" ", "\u2581")
    first.pre_tokenizer = pre_tokenizers.Split(Regex("\u2581+|\\n|\\d"), "merged_with_next")
    first.train_from_iterator(corpus(), BpeTrainer(vocab_size=700, show_progress=False))
    learnt = json.loads(first.to_str())["model"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    made = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: token for token, piece in enumerate(pieces)},
            merges=[tuple(merge) for merge in learnt["merges"]],
            unk_token="<unk>", fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    made.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    names = {f"{role}_token": f"<{role}>" for role in ("bos", "eos", "pad", "unk")}
    config = _config(made, "GemmaTokenizer", names)
    config["chat_template"] = [
        {"name": "tool_use", "template": "{{ 1 / 0 }}"},
        {"name": "default", "template": GEMMA_CHAT},
    ]
    _write(folder, made, config, {"generation_config.json": {"eos_token_id": [1, 5]}})
    return folder


def llama2(folder: Path, *, legacy: bool = True, **changes: Any) -> Path:
    """SentencePiece alone in the manner of Llama 2 and Mistral: a dummy prefix, no tokenizer.json.

    changes: of the trainer's settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(**changes))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "legacy": legacy, "add_bos_token": True, "add_eos_token": False,
        "clean_up_tokenization_spaces": False, "chat_template": MISTRAL_CHAT,
    }  # fmt: skip
    _write_json(folder / "tokenizer_config.json", config)
    return folder


FOLDERS = {"qwen": qwen, "llama3": llama3, "gemma": gemma, "llama2": llama2}


@functools.cache
def sentencepiece_model(**changes: Any) -> bytes:
    """A model of the usual shape, in the making of which rft_jax has no part."""
    settings: dict[str, Any] = {
        "vocab_size": 600,
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, **settings | changes
    )
    return model.getvalue()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Around imports of transformers, whose own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def transformers_reads(folder: Path) -> Any:
    """What transformers makes of a folder. AssertionError when it logs a warning."""
    with quiet():
        import transformers

        records: list[logging.LogRecord] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = records.append  # type: ignore[method-assign]
        logger = logging.getLogger("transformers")
        logger.addHandler(handler)
        try:
            read = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        finally:
            logger.removeHandler(handler)
    assert not records, [record.getMessage() for record in records]
    return read


def _of_bytes(
    split: str, special: list[str], *, ignore_merges: bool = False
) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=alphabet)
    made.train_from_iterator(corpus(), trainer)
    made.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    return made


def _config(made: tokenizers.Tokenizer, kind: str, names: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json as published models have it."""
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = {
        str(token): {flag: getattr(one, flag) for flag in flags}
        for token, one in made.get_added_tokens_decoder().items()
    }
    plain = {"tokenizer_class": kind, "clean_up_tokenization_spaces": False}
    return {"added_tokens_decoder": added} | plain | names


def _write(
    folder: Path, made: tokenizers.Tokenizer, config: dict[str, Any], others: dict[str, Any]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    for name, content in ({"tokenizer_config.json": config} | others).items():
        _write_json(folder / name, content)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
