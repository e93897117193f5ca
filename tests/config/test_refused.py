"""What is known to fail is refused before anything loads, with its cure; and the cure, typed as shown, cures it."""

from __future__ import annotations

import pytest

from ftkit.config.resolve import resolve
from ftkit.errors import ConfigError, Problem

TWO = "compute=h100x2"


def refused(*arguments: str) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as error:
        resolve([*arguments, "stage=plan"])
    return {problem.key: problem for problem in error.value.problems}


@pytest.mark.parametrize("reentrant", ["true", "false"])
@pytest.mark.parametrize("find_unused", ["null", "true", "false"])
def test_ddp_with_expert_lora(reentrant: str, find_unused: str) -> None:
    """Reentrant checkpointing fails under DDP unless the search for unused parameters is off; null means true.

    Guard: reentrant_checkpointing_under_ddp.
    """
    arguments = [f"sft.gradient_checkpointing_kwargs.use_reentrant={reentrant}",
                 f"sft.ddp_find_unused_parameters={find_unused}"]  # fmt: skip
    assert resolve(["compute=h100x1", *arguments])
    if reentrant == "false" or find_unused == "false":
        assert resolve([TWO, *arguments])
        return
    problem = refused(TWO, *arguments)["sft.gradient_checkpointing_kwargs"]
    assert "Expected to mark a variable ready only once" in problem.what and problem.cure == "sft=ddp-safe"
    assert resolve([TWO, problem.cure])


@pytest.mark.parametrize(
    ("arguments", "key", "cure"),
    [
        ("tracking=[trackio,tensorboard]", "tracking", "tracking=auto"),
        ("lora=none evaluation.adapter=true", "evaluation.adapter", "evaluation.adapter=false"),
        ('deployment.gate=["right>=adapter"]', "deployment.gate", "evaluation.adapter=true"),
        ("lora.lora_dropout=0.1", "lora.lora_dropout", "lora.lora_dropout=0.0"),
        ("lora.lora_dropout=0.1", "lora.lora_dropout", "lora=attention"),
        ("lora.target_parameters=[mlp.expert.gate_up_proj]", "lora.target_parameters", "mlp.experts.gate_up_proj"),
        ("lora.target_modules=[] lora.target_parameters=null", "lora", "lora.target_modules=all-linear"),
        ("lora.init_lora_weights=pissa", "lora.init_lora_weights", "lora.init_lora_weights=gaussian"),
        ("lora.init_lora_weights=olora", "lora.init_lora_weights", "lora.init_lora_weights=gaussian"),
        ("lora.init_lora_weights=orthogonal", "lora.init_lora_weights", "lora.init_lora_weights=gaussian"),
        ("+lora.use_dora=true", "lora.use_dora", "lora.use_rslora=true"),
        ("+lora.lora_bias=true", "lora.lora_bias", "leave it out"),
        ("model.attn_implementation=sdpa", "model.attn_implementation", "model.attn_implementation=ftkit_sinks"),
        ("model.attn_implementation=flash_attention_2", "model.attn_implementation",
         "model.attn_implementation=ftkit_sinks"),
        ("model.attn_implementation=flash_attention_3", "model.attn_implementation", "eager"),
        ("compute.gib_per_gpu=null model.attn_implementation=flex_attention", "model.attn_implementation",
         "model.attn_implementation=eager"),
        ("+sft.save_only_model=true", "sft.save_only_model", "sft.save_total_limit=1"),
        ("+sft.ignore_data_skip=true", "sft.ignore_data_skip", "leave it out"),
        ("+sft.packing_strategy=wrapped", "sft.packing_strategy", "sft.packing=true"),
        ("+sft.padding_free=true", "sft.padding_free", "sft.packing=true"),
        ("+sft.assistant_only_loss=true", "sft.assistant_only_loss", "leave it out"),
        ("+sft.completion_only_loss=true", "sft.completion_only_loss", "leave it out"),
        ("sft.early_stopping_patience=2 sft.eval_strategy=no", "sft.early_stopping_patience",
         "sft.eval_strategy=steps"),
        ("sft.load_best_model_at_end=true sft.eval_strategy=no", "sft.load_best_model_at_end",
         "sft.eval_strategy=steps"),
        ("sft.early_stopping_patience=2 dataset.heldout=0.0", "sft.early_stopping_patience", "dataset.heldout=0.05"),
        ("sft.lr_scheduler_type=cosine", "sft.lr_scheduler_kwargs", "sft.lr_scheduler_kwargs.min_lr_rate=null"),
        ("sft.lr_scheduler_kwargs.min_lr_rate=null", "sft.lr_scheduler_kwargs",
         "sft.lr_scheduler_kwargs.min_lr_rate=0.1"),
        ("sft.max_steps=0", "sft.max_steps", "-1"),
        ("lora=none lora.r=8", "lora", "lora=experts"),
        ("lora=none model.weights=mxfp4", "model.weights", "model.weights=dense"),
        ("sft.fsdp=true", "sft.fsdp", "compute.gpus_per_node=2"),
        ("model.weights=mxfp4 sft.fsdp=true compute=h100x8", "model.weights", "model.weights=dense"),
    ],
)  # fmt: skip
def test_combination(arguments: str, key: str, cure: str) -> None:
    """Guards: the functions of ftkit.config.checks, and REFUSED and REFUSED_VALUES in ftkit.config.problems."""
    problem = refused(*arguments.split())[key]
    assert cure in problem.cure, problem
    if "=" in cure:
        kept = [a for a in arguments.split() if not a.startswith("+")]
        assert resolve([*kept, cure, "stage=plan"])
