"""The shape comes from the checkpoint's own config.json; what does not fit it is said before anything loads."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
from helpers.command import REPOSITORY
from helpers.small_families import FORM_OF, SHAPES, save_small
from torch import nn
from transformers import AutoModelForCausalLM

from ftkit.config.option_files import options
from ftkit.config.resolve import resolve
from ftkit.errors import ConfigError
from ftkit.families import FAMILIES, family_of
from ftkit.models.training_memory import model_parameters

PUBLISHED = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "llama-3.1-8b": 8_030_261_248,
    "smollm2-135m": 134_515_008,
    "mistral-7b": 7_248_023_552,
    "olmo-2-1b": 1_484_916_736,
    "gpt-oss-swallow-20b": 20_914_757_184,
    "gpt-oss-safeguard-20b": 20_914_757_184,
}
"""Parameters as the models' cards give them, to the digits that they give."""
PATH = "model.pretrained_model_name_or_path"


@pytest.fixture(scope="module", params=sorted(SHAPES))
def checkpoint(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(request.param, tmp_path_factory.mktemp(request.param))


def planned(*overrides: str):
    return resolve(["experiment=tiny", "stage=plan", *overrides])


def problems(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        planned(*overrides)
    return "\n".join(f"{p.key}: {p.what}; {p.cure}" for p in error.value.problems)


def test_the_folder_of_a_model_is_enough(checkpoint: Path) -> None:
    model = planned(f"{PATH}={checkpoint}").model
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert model.architecture.model_type == loaded.config.model_type
    assert model_parameters(model.architecture) == sum(p.numel() for p in loaded.parameters())


def test_the_example_of_the_page_on_families_is_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever follows docs/extending.md to the letter gets Mixtral's shape, experts and router."""
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    module = ModuleType("mixtral_of_the_page")
    exec(textwrap.dedent(page.partition("```python\n")[2].partition("```")[0]), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(FAMILIES, "mixtral", module.__name__)
    monkeypatch.setitem(SHAPES, "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16})
    monkeypatch.setitem(FORM_OF, "mixtral", "llama")
    config = planned(f"{PATH}={save_small('mixtral', tmp_path)}")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    names = {name for name, _ in loaded.named_parameters()}
    assert model_parameters(config.model.architecture) == sum(p.numel() for p in loaded.parameters())
    assert config.lora and {f"model.layers.0.{name}" for name in config.lora.target_parameters or ()} <= names
    assert any(name.endswith(f"{module.FAMILY.router[0]}weight") for name in names)
    assert module.FAMILY.layer_class == type(loaded.model.layers[0]).__name__
    linear = {name for name, each in loaded.model.layers[0].named_modules() if isinstance(each, nn.Linear)}
    assert linear == {*module.FAMILY.linear}


@pytest.mark.parametrize("option", sorted(PUBLISHED))
def test_shipped_shapes_have_the_published_number_of_parameters(option: str) -> None:
    assert option in options("model")
    assert model_parameters(planned(f"model={option}").model.architecture) == PUBLISHED[option]


def test_linear_modules_of_a_family_are_those_of_its_models(checkpoint: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint)
    family = family_of(loaded.config.model_type)
    linear = {name for name, module in loaded.model.layers[0].named_modules() if isinstance(module, nn.Linear)}
    assert not family.linear or {*family.linear} == linear


def test_auto_is_the_fastest_of_the_family() -> None:
    on_gpu = ["compute.gib_per_gpu=80"]
    moe = planned("model=qwen3-30b-a3b", *on_gpu)
    assert (moe.model.attn_implementation, moe.model.experts_implementation) == ("ftkit_varlen", "ftkit_lora")
    assert moe.lora and moe.lora.target_parameters == ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    dense = planned("model=qwen3-8b")
    assert (dense.model.attn_implementation, dense.model.experts_implementation) == ("sdpa", "eager")
    assert dense.lora and dense.lora.target_parameters is None
    gpt_oss = planned("model=gpt-oss-20b", *on_gpu).model
    assert (gpt_oss.attn_implementation, gpt_oss.experts_implementation) == ("ftkit_sinks", "ftkit_lora")


def test_a_known_model_under_another_ones_option_names_its_own() -> None:
    assert "model=qwen3-30b-a3b" in problems("model=gpt-oss-20b", f"{PATH}=Qwen/Qwen3-30B-A3B")


def test_a_stated_shape_that_is_not_the_checkpoints(tmp_path: Path) -> None:
    folder = save_small("llama", tmp_path)
    said = problems(f"{PATH}={folder}", "model.architecture.num_hidden_layers=3")
    assert "model.architecture.num_hidden_layers: 3, and the checkpoint has 2" in said


def test_rows_longer_than_the_model_has_positions() -> None:
    said = problems("model=gpt-oss-20b", "sft.max_length=262144")
    assert "sft.max_length: 262,144, and gpt-oss-20b has positions for 131,072 tokens; sft.max_length=131072" in said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"model_type": "t5", "d_model": 64}, "its model_type is 't5'"),
        ({"hidden_size": 64}, "names no model_type"),
        ("not JSON", "cannot be read"),
    ],
)
def test_a_config_that_is_none_of_a_causal_model(written, said: str, tmp_path: Path) -> None:
    text = written if isinstance(written, str) else json.dumps(written)
    (tmp_path / "config.json").write_text(text)
    assert said in problems(f"{PATH}={tmp_path}")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=qwen3-8b", "model.attn_implementation=ftkit_sinks"], "ftkit_sinks is none that Qwen3 has"),
        (["model=qwen3-8b", "model.experts_implementation=grouped_mm"], "grouped_mm is none that Qwen3 has"),
        (["model=qwen3-30b-a3b", "model.weights=mxfp4"], "mxfp4, which no Qwen3-MoE comes in"),
        (["model=llama-3.1-8b", "merge.format=mxfp4"], "merge.format: mxfp4, which no Llama comes in"),
        (["model=qwen3-8b", "lora.target_modules=[gate_prj]"], "did you mean lora.target_modules=[gate_proj]?"),
        (["model=qwen3-30b-a3b", "lora.target_modules=[up_proj]"], "which adapts the experts' up_proj"),
        (["model=gpt-oss-20b", "model.attn_implementation=sdpa"], "sdpa leaves gpt-oss's attention sinks out"),
    ],
)
def test_what_a_family_does_not_have(overrides: list[str], said: str) -> None:
    assert said in problems(*overrides)


@pytest.mark.parametrize("others", ["", "lora=none", "sft.fsdp=true compute=h100x8"])
def test_a_dense_familys_mxfp4_is_one_problem_with_a_cure_that_is_taken(others: str) -> None:
    assert problems("model=qwen3-8b", "model.weights=mxfp4", *others.split()).count("model.weights=") == 1
