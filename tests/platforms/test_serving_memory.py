"""What plan says of the machine that is to serve."""

from __future__ import annotations

import pytest

from ftkit.config.resolve import resolve
from ftkit.models.serving_memory import in_words, problems, serving
from ftkit.models.vm_gpus import gpus_of

IDS = ("workspace.subscription_id=s", "workspace.resource_group=g", "workspace.workspace_name=w")


def config(*arguments: str):
    return resolve(["stage=plan", *IDS, *arguments])


def said(size: str, *arguments: str) -> str:
    gpus = gpus_of(size)
    assert gpus
    return "; ".join(problems(config(f"deployment.instance_type={size}", *arguments), gpus))


@pytest.mark.parametrize(
    ("size", "arguments", "says"),
    [
        ("Standard_NC40ads_H100_v5", (), ""),
        ("Standard_NC40ads_H100_v5", ("merge.format=fp32",), ""),
        ("Standard_NC24ads_A100_v4", (), ""),
        ("Standard_NC4as_T4_v3", (), "39.0 GiB of weights will not fit in 1 × T4, 16 GiB each"),
        ("STANDARD_NC6S_V3", (), "will not fit in 1 × V100, 16 GiB each"),
        ("Standard_NC64as_T4_v3", ("deployment=vllm", "merge.format=mxfp4"), "has no bfloat16"),
        ("Standard_NV36ads_A10_v5", (), "or deployment=vllm merge.format=mxfp4"),
        ("Standard_NV36ads_A10_v5", ("deployment=vllm", "merge.format=mxfp4"), ""),
        ("Standard_NV12ads_A10_v5", ("deployment=vllm", "merge.format=mxfp4"), "will not fit in 1 × third of an A10"),
        ("Standard_NC12s_v3", ("deployment.max_concurrent_requests_per_instance=1",), "will not fit in 2 × V100"),
        (
            "Standard_NC24s_v3",
            ("deployment.max_input_tokens=16384",),
            "deployment.max_concurrent_requests_per_instance=<fewer>, ",
        ),
    ],
)
def test_a_machine_that_cannot_serve_is_told_with_one_that_can(size: str, arguments: tuple[str, ...], says: str):
    found = said(size, *arguments)
    assert says in found and bool(says) == bool(found)


def test_what_the_published_shape_holds():
    """gpt-oss-20b has 20.9 billion parameters; its checkpoint of 12.8 GiB holds the experts in 4 bits."""
    assert serving(config()).weights == pytest.approx(39.0, abs=0.1)
    packed = config("deployment=vllm", "merge.format=mxfp4")
    assert serving(packed).weights == pytest.approx(12.8, abs=0.1)
    assert "computes in 16" in in_words(packed, gpus_of("Standard_NC24ads_A100_v4"))
    assert "score unpacks or rounds mxfp4" in in_words(config("merge.format=mxfp4"), None)


def test_keys_and_values_are_those_of_the_familys_attention():
    """Qwen3-8B keeps 36 layers × 8 heads × 128 values in bfloat16 of all 40,960 tokens, and gpt-oss-20b 24 × 8 × 64 of
    131,072 in half of its layers and of 128 in the others."""
    assert serving(config("model=qwen3-8b", "deployment=vllm")).cache == pytest.approx(5.625, abs=0.001)
    assert serving(config("deployment=vllm")).cache == pytest.approx(3.003, abs=0.001)
