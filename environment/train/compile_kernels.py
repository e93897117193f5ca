"""Compiles FlashAttention 4's kernels for Hopper GPUs while the image is built, without a GPU, so that no job has to.

They are found by what ``ftkit/models/flash.py`` hands to the package: the arguments here have to be of the same kinds,
and of sizes like a training's, for very short documents and more than 256 of them have kernels of their own.
"""

import os

os.environ.update(FLASH_ATTENTION_ARCH="sm_90", CUTE_DSL_ARCH="sm_90a", FLASH_ATTENTION_NUM_SMS="132")

import torch
from flash_attn.cute import interface
from torch._subclasses.fake_tensor import FakeTensorMode

SHAPES = ((64, 8, 64, 128), (32, 8, 128, 4096), (32, 4, 128, None))
"""Query heads, key heads, head_dim and window: gpt-oss; Llama, Mistral and Qwen3-8B; Qwen3-30B-A3B."""

with FakeTensorMode():
    for queries, keys, width, window in SHAPES:
        q, k, v, gradient = (
            torch.empty(436, heads, width, dtype=torch.bfloat16, device="cuda")
            for heads in (queries, keys, keys, queries)
        )
        bounds = torch.empty(5, dtype=torch.int32, device="cuda")
        for left in dict.fromkeys((None, window)):
            seen = {"causal": True} if left is None else {"window_size_left": left - 1, "window_size_right": 0}
            options = {
                "cu_seqlens_q": bounds, "cu_seqlens_k": bounds, "max_seqlen_q": 300, "max_seqlen_k": 300,
                "softmax_scale": width**-0.5, **seen,
            }  # fmt: skip
            o, lse, *_ = interface._flash_attn_fwd(q, k, v, return_lse=True, **options)
            interface._flash_attn_bwd(q, k, v, o, gradient, lse, deterministic=False, **options)
            print(f"compiled for heads of {width}, {queries // keys} to a key, {f'window {left}' if left else 'whole'}")
