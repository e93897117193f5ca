"""What plan predicts, against what was measured and what the real models have."""

from __future__ import annotations

import pytest

from ftkit.config.resolve import resolve
from ftkit.models.training_memory import GIB, adapter_parameters, footprint, model_parameters

SIX_LAYERS = "model.architecture.num_hidden_layers=6"
QWEN3 = "model.architecture.num_hidden_layers=12 sft.max_length=2048 sft.per_device_train_batch_size=4 model"
PEFT = "model.attn_implementation=flex_attention model.experts_implementation=grouped_mm"
MEASURED_ON_H100S = {
    f"{SIX_LAYERS} {PEFT} lora=attention sft.max_length=2048 sft.per_device_train_batch_size=4": 14.5,
    f"{SIX_LAYERS} {PEFT} sft.max_length=2048 sft.per_device_train_batch_size=4": 16.3,
    f"{SIX_LAYERS} {PEFT} sft.max_length=4096": 15.0,
    f"{SIX_LAYERS} {PEFT} sft.max_length=4096 lora.r=32": 15.9,
    f"{SIX_LAYERS} {PEFT} sft.max_length=4096 sft.gradient_checkpointing=false": 27.5,
    f"{PEFT} sft.max_length=2048 sft.per_device_train_batch_size=4": 45.4,
    "lora=cookbook model.attn_implementation=eager model.experts_implementation=grouped_mm "
    "sft.max_length=2048 sft.per_device_train_batch_size=4": 58.8,
    "sft.max_length=2048 sft.per_device_train_batch_size=4": 42.8,
    "sft.max_length=2048 sft.per_device_train_batch_size=4 model.weights=mxfp4": 15.3,
    "sft.max_length=4096 model.weights=mxfp4": 14.4,
    "sft.max_length=4096 lora.r=32": 46.0,
    "sft.max_length=16384": 44.6,
    "sft.max_length=4096 model.weights=mxfp4 lora.r=64 sft.gradient_checkpointing=false": 29.3,
    "sft.max_length=2048 sft.per_device_train_batch_size=4 model.products=fp8": 42.8,
    "sft.max_length=2048 sft.per_device_train_batch_size=4 model.products=fp8 sft.gradient_checkpointing=false": 57.2,
    "sft.max_length=2048 sft.per_device_train_batch_size=4 model.products=fp8_all "
    "sft.gradient_checkpointing=false": 57.2,
    "sft.max_length=2048 sft.per_device_train_batch_size=4 model.products=fp8 model.weights=mxfp4": 15.3,
    "sft.max_length=4096 sft.per_device_train_batch_size=2 model.products=fp8 model.weights=mxfp4 "
    "sft.gradient_checkpointing=false": 30.3,
    f"{SIX_LAYERS} sft.max_length=2048 sft.per_device_train_batch_size=4 model.weights=mxfp4": 5.8,
    f"{SIX_LAYERS} sft.max_length=2048 sft.per_device_train_batch_size=4 sft.gradient_checkpointing=false": 16.7,
    f"{SIX_LAYERS} sft.max_length=2048 sft.per_device_train_batch_size=4": 15.1,
    f"{SIX_LAYERS} sft.max_length=2048 sft.per_device_train_batch_size=4 sft=fsdp compute=h100x2": 11.9,
    f"{SIX_LAYERS} sft.max_length=2048 sft.per_device_train_batch_size=4 sft=fsdp compute=h100x2 lora=none": 50.0,
    f"{QWEN3}=qwen3-8b sft.gradient_checkpointing=true": 8.6,
    f"{QWEN3}=qwen3-8b sft.gradient_checkpointing=false": 17.0,
    f"{QWEN3}=qwen3-30b-a3b sft.gradient_checkpointing=true": 17.6,
    f"{QWEN3}=qwen3-30b-a3b sft.gradient_checkpointing=false": 22.6,
    f"{QWEN3}=qwen3-8b sft.gradient_checkpointing=true model.products=fp8_all": 8.8,
    f"{QWEN3}=qwen3-8b sft.gradient_checkpointing=false model.products=fp8_all": 17.0,
    f"{QWEN3}=qwen3-30b-a3b sft.gradient_checkpointing=false model.products=fp8": 22.3,
}
"""Peaks in GiB of torch.cuda.max_memory_allocated, of one GPU, by overrides."""


@pytest.mark.parametrize("overrides", MEASURED_ON_H100S)
def test_prediction_is_within_a_tenth_of_the_measured_peak(overrides: str):
    predicted = footprint(resolve([*overrides.split(), "stage=plan"])).total / GIB
    assert predicted == pytest.approx(MEASURED_ON_H100S[overrides], rel=0.1)


@pytest.mark.parametrize(("model", "published"), [("gpt-oss-20b", 20_914_757_184), ("gpt-oss-120b", 116_829_156_672)])
def test_parameters_are_the_published_ones(model: str, published: int):
    assert model_parameters(resolve([f"model={model}", "stage=plan"]).model.architecture) == published


@pytest.mark.parametrize(
    ("lora", "attention", "experts"),
    [
        ("experts", 3_981_312, 88_473_600),
        ("attention", 3_981_312, 0),
        ("cookbook", 3_981_312, 11_059_200),
        ("none", 0, 0),
    ],
)
def test_adapter_parameters(lora: str, attention: int, experts: int):
    adapter = adapter_parameters(resolve([f"lora={lora}", "stage=plan"]))
    assert (adapter.attention, adapter.experts) == (attention, experts)
