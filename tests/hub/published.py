"""config.json of published models, as far as it says what they compute, and how many parameters
each is stated to have."""

from __future__ import annotations

from typing import Any, NamedTuple


class Published(NamedTuple):
    """raw: config.json; parameters: as stated; expected: fields of ModelConfig that are no
    default."""

    raw: dict[str, Any]
    parameters: int
    expected: dict[str, Any]


def _llama(**keys: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "pretraining_tp": 1,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        **keys,
    }


def _mistral(**keys: Any) -> dict[str, Any]:
    return _llama(
        architectures=["MistralForCausalLM"],
        model_type="mistral",
        intermediate_size=14336,
        num_hidden_layers=32,
        num_key_value_heads=8,
        rms_norm_eps=1e-05,
        attention_dropout=0.0,
        **keys,
    )


def _qwen(**keys: Any) -> dict[str, Any]:
    return _llama(
        architectures=["Qwen2ForCausalLM"],
        model_type="qwen2",
        attention_dropout=0.0,
        bos_token_id=151643,
        eos_token_id=151643,
        max_position_embeddings=32768,
        num_key_value_heads=2,
        rms_norm_eps=1e-06,
        rope_theta=1000000.0,
        tie_word_embeddings=True,
        use_sliding_window=False,
        vocab_size=151936,
        **keys,
    )


QWEN_05B = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "sliding_window": 32768,
}
QWEN_15B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "use_mrope": False,
}

LLAMA_7B_FIELDS = {
    "num_layers": 32,
    "d_model": 4096,
    "num_heads": 32,
    "num_kv_heads": 32,
    "head_dim": 128,
    "mlp_dim": 11008,
    "vocab_size": 32000,
    "norm_eps": 1e-5,
}
MISTRAL_FIELDS = LLAMA_7B_FIELDS | {"num_kv_heads": 8, "mlp_dim": 14336}
QWEN_FIELDS = {
    "num_kv_heads": 2,
    "vocab_size": 151936,
    "tie_embeddings": True,
    "qkv_bias": True,
    "rope_theta": 1e6,
}
QWEN_05B_FIELDS = QWEN_FIELDS | {
    "num_layers": 24,
    "d_model": 896,
    "num_heads": 14,
    "head_dim": 64,
    "mlp_dim": 4864,
}
QWEN_15B_FIELDS = QWEN_FIELDS | {
    "num_layers": 28,
    "d_model": 1536,
    "num_heads": 12,
    "head_dim": 128,
    "mlp_dim": 8960,
}
GEMMA_FIELDS = {
    "num_layers": 26,
    "head_dim": 256,
    "tie_embeddings": True,
    "norm_offset": True,
    "post_norms": True,
    "activation": "gelu_tanh",
    "scale_embeddings": True,
}

DEEPSEEK_MATH = Published(
    _llama(
        bos_token_id=100000,
        eos_token_id=100001,
        intermediate_size=11008,
        max_position_embeddings=4096,
        num_hidden_layers=30,
        rms_norm_eps=1e-06,
        rope_theta=10000.0,
        attention_bias=False,
        attention_dropout=0.0,
        vocab_size=102400,
    ),
    6_910_365_696,
    LLAMA_7B_FIELDS | {"num_layers": 30, "vocab_size": 102400, "norm_eps": 1e-6},
)

PUBLISHED = {
    # Its file is older than rope_theta.
    "Llama-2-7b-hf": Published(
        _llama(
            intermediate_size=11008,
            max_position_embeddings=4096,
            num_hidden_layers=32,
            rms_norm_eps=1e-05,
            torch_dtype="float16",
            vocab_size=32000,
        ),
        6_738_415_616,
        LLAMA_7B_FIELDS,
    ),
    "Llama-3.1-8B": Published(
        _llama(
            bos_token_id=128000,
            eos_token_id=128001,
            intermediate_size=14336,
            max_position_embeddings=131072,
            mlp_bias=False,
            num_hidden_layers=32,
            num_key_value_heads=8,
            rms_norm_eps=1e-05,
            rope_scaling={
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            rope_theta=500000.0,
            vocab_size=128256,
        ),
        8_030_261_248,
        LLAMA_7B_FIELDS
        | {
            "num_kv_heads": 8,
            "mlp_dim": 14336,
            "vocab_size": 128256,
            "rope_theta": 500000.0,
            "rope_scaling": "llama3",
            "rope_factor": 8.0,
            "rope_original_positions": 8192,
            "rope_low_turns": 1.0,
            "rope_high_turns": 4.0,
        },
    ),
    "deepseek-math-7b-base": DEEPSEEK_MATH,
    "Mistral-7B-v0.1": Published(
        _mistral(
            max_position_embeddings=32768,
            rope_theta=10000.0,
            sliding_window=4096,
            vocab_size=32000,
        ),
        7_241_732_096,
        MISTRAL_FIELDS | {"sliding_window": 4096},
    ),
    "Mistral-7B-v0.3": Published(
        _mistral(
            max_position_embeddings=32768,
            rope_theta=1000000.0,
            sliding_window=None,
            vocab_size=32768,
        ),
        7_248_023_552,
        MISTRAL_FIELDS | {"vocab_size": 32768, "rope_theta": 1e6},
    ),
    "Qwen2.5-0.5B": Published(
        _qwen(**QWEN_05B, max_window_layers=24), 494_032_768, QWEN_05B_FIELDS
    ),
    "Qwen2.5-0.5B-Instruct": Published(
        _qwen(**QWEN_05B, max_window_layers=21), 494_032_768, QWEN_05B_FIELDS
    ),
    "Qwen2.5-1.5B": Published(
        _qwen(**QWEN_15B, sliding_window=131072, max_window_layers=28),
        1_543_714_304,
        QWEN_15B_FIELDS,
    ),
    "Qwen2.5-1.5B-Instruct": Published(
        _qwen(**QWEN_15B, sliding_window=32768, max_window_layers=21),
        1_543_714_304,
        QWEN_15B_FIELDS,
    ),
    "Qwen3-0.6B": Published(
        _llama(
            architectures=["Qwen3ForCausalLM"],
            model_type="qwen3",
            attention_bias=False,
            attention_dropout=0.0,
            head_dim=128,
            hidden_size=1024,
            intermediate_size=3072,
            max_position_embeddings=40960,
            max_window_layers=28,
            num_attention_heads=16,
            num_hidden_layers=28,
            num_key_value_heads=8,
            rms_norm_eps=1e-06,
            rope_theta=1000000,
            sliding_window=None,
            tie_word_embeddings=True,
            use_sliding_window=False,
            vocab_size=151936,
        ),
        596_049_920,
        {
            "num_layers": 28,
            "d_model": 1024,
            "num_heads": 16,
            "num_kv_heads": 8,
            "head_dim": 128,
            "mlp_dim": 3072,
            "vocab_size": 151936,
            "tie_embeddings": True,
            "qk_norm": True,
            "rope_theta": 1e6,
        },
    ),
    "gemma-2-2b": Published(
        {
            "architectures": ["Gemma2ForCausalLM"],
            "model_type": "gemma2",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_logit_softcapping": 50.0,
            "bos_token_id": 2,
            "cache_implementation": "hybrid",
            "eos_token_id": 1,
            "final_logit_softcapping": 30.0,
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "max_position_embeddings": 8192,
            "num_attention_heads": 8,
            "num_hidden_layers": 26,
            "num_key_value_heads": 4,
            "pad_token_id": 0,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "torch_dtype": "float32",
            "vocab_size": 256000,
        },
        2_614_341_888,
        GEMMA_FIELDS
        | {
            "d_model": 2304,
            "num_heads": 8,
            "num_kv_heads": 4,
            "mlp_dim": 9216,
            "vocab_size": 256000,
            "attention_softcap": 50.0,
            "final_softcap": 30.0,
            "sliding_window": 4096,
            "global_every": 2,
        },
    ),
    "gemma-3-1b-pt": Published(
        {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_logit_softcapping": None,
            "bos_token_id": 2,
            "cache_implementation": "hybrid",
            "eos_token_id": 1,
            "final_logit_softcapping": None,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "max_position_embeddings": 32768,
            "num_attention_heads": 4,
            "num_hidden_layers": 26,
            "num_key_value_heads": 1,
            "pad_token_id": 0,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
            "torch_dtype": "bfloat16",
            "vocab_size": 262144,
        },
        999_885_952,
        GEMMA_FIELDS
        | {
            "d_model": 1152,
            "num_heads": 4,
            "num_kv_heads": 1,
            "mlp_dim": 6912,
            "vocab_size": 262144,
            "qk_norm": True,
            "sliding_window": 512,
            "global_every": 6,
            "rope_theta": 1e6,
            "local_rope_theta": 1e4,
        },
    ),
}
