"""A small random checkpoint of each family, with a tokenizer and a chat template of the family's form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "qwen3_moe": {
        **{"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        **{"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True},
    },
    "llama": {"tie_word_embeddings": True},
    "olmo2": {},
    "mistral": {"sliding_window": 8, "head_dim": 16},
    "granite": {"logits_scaling": 4.0},
}
"""What a config.json of each has besides the common shape; granite stands for a family that ftkit does not know."""

QWEN3_TEMPLATE = """\
{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{%- set thinking = message.reasoning_content if message.reasoning_content is string else '' %}
{%- if loop.index0 > ns.last and (loop.last or thinking) %}
{{- '<|im_start|>assistant\\n<think>\\n' + thinking.strip('\\n') + '\\n</think>\\n\\n' }}
{{- message.content.lstrip('\\n') }}
{%- else %}{{- '<|im_start|>assistant\\n' + message.content }}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
LLAMA_TEMPLATE = """\
{{- bos_token }}{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
OLMO_TEMPLATE = """\
{{- bos_token }}{%- for message in messages %}
{%- if message.role == 'assistant' %}{{- '<|assistant|>\\n' + message.content + eos_token }}
{%- if not loop.last %}{{- '\\n' }}{%- endif %}
{%- else %}{{- '<|' + message.role + '|>\\n' + message.content + '\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"""
MISTRAL_TEMPLATE = """\
{{- bos_token }}{%- for message in messages %}
{%- if message.role == 'user' %}{{- '[INST] ' }}
{%- if loop.last and messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- message.content + '[/INST]' }}
{%- elif message.role == 'assistant' %}{{- ' ' + message.content | trim + eos_token }}{%- endif %}
{%- endfor %}"""
R1_TEMPLATE = """\
{{- bos_token }}{%- for message in messages %}
{%- if message.role == 'system' %}{{- message.content }}
{%- elif message.role == 'user' %}{{- '<|User|>' + message.content }}
{%- else %}{{- '<|Assistant|>' + message.content.split('</think>')[-1] + eos_token }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}"""
TEMPLATES = {
    "qwen3": (QWEN3_TEMPLATE, ["<|im_start|>", "<|im_end|>"], ["<think>", "</think>"], "<|im_end|>"),
    "llama": (LLAMA_TEMPLATE, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], [], "<|eot_id|>"),
    "olmo": (OLMO_TEMPLATE, ["<|end_of_text|>"], [], "<|end_of_text|>"),
    "mistral": (MISTRAL_TEMPLATE, ["[INST]", "[/INST]", "</s>"], [], "</s>"),
    "r1": (R1_TEMPLATE, ["<|User|>", "<|Assistant|>", "<|end_of_text|>"], [], "<|end_of_text|>"),
}
"""By form: template, special tokens, tokens that are none but are taken whole, the token that ends a turn."""
FORM_OF = {
    **{"qwen3": "qwen3", "qwen3_moe": "qwen3", "llama": "llama", "olmo2": "olmo"},
    **{"mistral": "mistral", "granite": "r1"},
}
"""By family: the form of its chats."""


def small_tokenizer(form: str) -> PreTrainedTokenizerFast:
    """Bytes as tokens, and the special tokens of a form."""
    template, special, whole, end = TEMPLATES[form]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    split = pre_tokenizers.Split(Regex(r"\s*\n+|\s+|[^\s]+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    tokenizer.add_special_tokens(["<|endoftext|>", "<|begin|>", *special])
    tokenizer.add_tokens(whole)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token=end,
        pad_token="<|endoftext|>",
        chat_template=template,
    )


def save_small(model_type: str, folder: Path, **changes: Any) -> Path:
    """A checkpoint of 2 layers, 32 wide, in float32."""
    tokenizer = small_tokenizer(FORM_OF[model_type])
    shape = {
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"num_key_value_heads": 1, "vocab_size": 288, "max_position_embeddings": 1024},
        **{"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id},
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = AutoConfig.for_model(model_type, **shape | SHAPES[model_type] | changes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
