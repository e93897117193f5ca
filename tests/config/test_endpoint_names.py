"""The endpoint has the model's name unless one is typed, in the form that Azure ML takes."""

from __future__ import annotations

import pytest

from ftkit.config.resolve import resolve


def endpoint(*arguments: str) -> str:
    return resolve([*arguments, "stage=plan"]).deployment.endpoint_name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-oss-20b", "gpt-oss-jp-reasoner"),
        ("gpt-oss-120b", "gpt-oss-jp-reasoner"),
        ("gpt-oss-safeguard-20b", "gpt-oss-safeguard-jp-reasoner"),
        ("qwen3-30b-a3b", "qwen3-jp-reasoner"),
        ("llama-3.1-8b", "llama-3-1-jp-reasoner"),
        ("smollm2-135m", "smollm2-jp-reasoner"),
    ],
)
def test_it_is_named_by_the_model_without_its_size(model: str, name: str):
    """One that is taken for a bigger one of its kind takes its place."""
    assert endpoint(f"model={model}", "compute=h100x8") == name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("My_Model.v2-7B", "My-Model-v2-jp-reasoner"),
        ("3rd-try", "rd-try-jp-reasoner"),
        ("123", "jp-reasoner"),
        ("a-model-with-a-name-that-goes-on", "a-model-with-a-name-jp-reasoner"),
    ],
)
def test_any_name_of_a_model_becomes_one_that_azure_takes(model: str, name: str):
    assert endpoint(f"model.name='{model}'") == name and len(name) <= 32


def test_a_name_that_is_typed_stays():
    assert endpoint("model=qwen3-8b", "deployment.endpoint_name=mine") == "mine"
    assert endpoint("experiment=tiny", "compute=local") == "tiny-jp-reasoner"
    assert endpoint("experiment=tiny", "deployment.endpoint_name=mine") == "mine"
