"""OLMo 2: norms after attention and MLP, and on all of the queries and keys together."""

from __future__ import annotations

from ftkit.families.family import ATTENTION, MLP, Family

FAMILY = Family(
    model_type="olmo2",
    title="OLMo 2",
    layer_class="Olmo2DecoderLayer",
    attention=("ftkit_varlen", "sdpa", "eager"),
    linear=(*ATTENTION, *MLP),
    biases=lambda a: (a.num_attention_heads + a.num_key_value_heads) * a.head_dim,
)
