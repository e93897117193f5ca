"""Loading the base: no weight that is missing and so drawn at random, nothing of another shape or kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch
from helpers.small_model import SHAPE, save_small_model, small_run, small_tokenizer
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from transformers.integrations import mxfp4

from ftkit.config.groups import Model
from ftkit.config.resolve import resolve
from ftkit.errors import ConfigError, StageError
from ftkit.models.loading import load_base, load_tokenizer
from ftkit.models.mxfp4 import dequantize_mxfp4
from ftkit.packages import install_command


def test_it_computes_as_the_configuration_says(model_folder: Path) -> None:
    config = small_run(model_folder, "model.experts_implementation=batched_mm")
    loaded = load_base(config.model, dtype="bfloat16")
    assert loaded.config._experts_implementation == "batched_mm" and loaded.config._attn_implementation == "eager"
    assert loaded.lm_head.weight.dtype == torch.bfloat16 and loaded.config.use_cache is False


def test_mxfp4_experts_become_dense(mxfp4_folder: Path) -> None:
    stored = load_file(mxfp4_folder / "model.safetensors")
    loaded = load_base(small_run(mxfp4_folder).model)
    for layer, block in enumerate(loaded.model.layers):
        for name in ("gate_up_proj", "down_proj"):
            prefix = f"model.layers.{layer}.mlp.experts.{name}"
            expected = dequantize_mxfp4(stored[f"{prefix}_blocks"], stored[f"{prefix}_scales"], torch.float32)
            assert torch.equal(getattr(block.mlp.experts, name), expected)


def test_experts_are_in_the_precision_that_was_asked_for(mxfp4_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a full fine-tuning would train them, and keep its optimiser's state, in bfloat16. Guard: ``.to(wanted)``."""
    convert = mxfp4.convert_moe_packed_tensors

    def to_bfloat16(blocks: torch.Tensor, scales: torch.Tensor, **given: object) -> torch.Tensor:
        return convert(blocks, scales)  # as transformers 5.17 does

    monkeypatch.setattr(mxfp4, "convert_moe_packed_tensors", to_bfloat16)
    loaded = load_base(small_run(mxfp4_folder).model, dtype="float32", training=True)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_the_model_that_ships_with_ftkit_loads_by_the_same_path() -> None:
    model = resolve(["experiment=tiny"]).model
    assert load_base(model).config.num_local_experts == model.architecture.num_local_experts
    assert load_tokenizer(model).convert_tokens_to_ids("<|return|>") is not None


@pytest.mark.parametrize("key", SHAPE)
def test_another_shape_than_the_checkpoint_is_refused(model_folder: Path, key: str) -> None:
    model = small_run(model_folder).model
    other = model.model_copy(update={"architecture": model.architecture.model_copy(update={key: SHAPE[key] + 1})})
    with pytest.raises(
        StageError, match=f"model.architecture.{key} is {SHAPE[key] + 1}, and the checkpoint has {SHAPE[key]}"
    ):
        load_base(other)


def changed(model: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a model with other weights."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


EXPERTS = "model.layers.1.mlp.experts.down_proj"
SINKS = "model.layers.1.self_attn.sinks"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop(EXPERTS), f"weights are missing: {EXPERTS}"),
        (lambda weights: weights.update(other=torch.zeros(1)), "weights are unexpected: other"),
        (lambda weights: weights.update({SINKS: torch.zeros(3)}), f"weights are of another shape: {SINKS}"),
    ],
    ids=["missing", "unexpected", "mismatched"],
)
def test_weights_that_are_not_the_model_s_are_refused(
    model_folder: Path, tmp_path: Path, change: Callable, said: str
) -> None:
    """Guard: check_complete in load_base; without it transformers fills what is missing with random numbers."""
    folder = changed(model_folder, tmp_path / "m", change)
    with pytest.raises(StageError, match=said) as caught:
        load_base(small_run(folder).model)
    assert (caught.value.where, caught.value.cure) == (str(folder), "download the model again")


BLOCKS, SCALES = f"{EXPERTS}_blocks", f"{EXPERTS}_scales"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.update(other=weights.pop(SCALES)), f"weights are missing: {SCALES}"),
        (lambda weights: weights.update(other=torch.zeros(1)), "weights are unexpected: other"),
        (lambda weights: weights.update({SINKS: torch.zeros(3)}), rf"{SINKS} is \(3,\), and the model has \(2,\)"),
        (
            lambda weights: weights.update({BLOCKS: weights[BLOCKS][:, :16].contiguous()}),
            rf"{BLOCKS} is \(4, 16, 1, 16\), and the model has \(4, 32, 1, 16\)",
        ),
        (
            lambda weights: weights.update({SCALES: weights[SCALES][:2].contiguous()}),
            rf"{SCALES} is \(2, 32, 1\), and the model has \(4, 32, 1\)",
        ),
    ],
    ids=["missing", "unexpected", "sinks", "blocks", "scales"],
)
def test_packed_weights_that_are_not_the_model_s_are_refused(
    mxfp4_folder: Path, tmp_path: Path, change: Callable, said: str
) -> None:
    """Guards: check_complete in load_base, and the shape in packed._place."""
    folder = changed(mxfp4_folder, tmp_path / "m", change)
    config = small_run(folder, "model.weights=mxfp4", "model.experts_implementation=ftkit_lora")
    with pytest.raises(StageError, match=said):
        load_base(config.model, training=True)


def test_packed_weights_that_cannot_be_unpacked_are_refused(mxfp4_folder: Path, tmp_path: Path) -> None:
    """Guard: the RuntimeError in model._explained, which is transformers'."""

    def halve(weights: dict[str, torch.Tensor]) -> None:
        weights[BLOCKS] = weights[BLOCKS][:, :16].contiguous()

    with pytest.raises(StageError, match="cannot be read: the download was cut off or the file is damaged"):
        load_base(small_run(changed(mxfp4_folder, tmp_path / "m", halve)).model)


def test_other_errors_of_running_out_pass(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is full is answered where the run is set up."""

    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_base(small_run(model_folder).model)


def test_weights_in_another_format_are_refused(model_folder: Path, tmp_path: Path) -> None:
    """Guard: the comparison of quant_method in load_base."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StageError, match="its weights are in fp8; ftkit reads dense weights and MXFP4") as caught:
        load_base(small_run(folder).model)
    assert caught.value.cure == "model.pretrained_model_name_or_path=…"


def test_a_download_that_was_cut_off_is_named(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "m"))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StageError, match="cannot be read") as caught:
        load_base(small_run(folder).model)
    assert "download the model again" in caught.value.cure


def test_a_folder_that_is_not_there_is_named_with_its_neighbour(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "gpt-oss").mkdir()
    with pytest.raises(StageError, match="no such folder") as caught:
        load_tokenizer(small_run(tmp_path / "gptoss").model)
    assert str(tmp_path / "gpt-oss") in caught.value.cure


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="its model_type is 'llama', which is no causal language model"):
        small_run(tmp_path)


def response() -> httpx.Response:
    return httpx.Response(401, request=httpx.Request("GET", "https://hub"))


@pytest.mark.parametrize(
    ("cause", "what", "cure"),
    [
        (errors.GatedRepoError("gated", response=response()), "gated", "HF_TOKEN"),
        (errors.RepositoryNotFoundError("none", response=response()), "the hub has no openai/gpt-oss-20b", "HF_TOKEN"),
        (errors.RevisionNotFoundError("none", response=response()), "no revision 'v9'", "model.revision=null"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE", "model.pretrained_model_name_or_path=<a folder"),
        (httpx.ConnectError("no route"), "cannot be reached", "model.pretrained_model_name_or_path=<a folder"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_hub_refuses_is_explained(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, cause: Exception, what: str, cure: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise cause

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", isinstance(cause, errors.OfflineModeIsEnabled))
    model: Model = small_run(model_folder).model.model_copy(
        update={"pretrained_model_name_or_path": "openai/gpt-oss-20b", "revision": "v9"}
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(model_folder / "no-cache"))
    with pytest.raises(StageError) as caught:
        load_base(model)
    assert what in caught.value.what and cure in caught.value.cure


@pytest.mark.parametrize(("weights", "hub_answers"), [("dense", True), ("dense", False), ("mxfp4", False)])
def test_a_model_in_the_hub_s_cache_is_read_from_there(
    mxfp4_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, hub_answers: bool
) -> None:
    def model_info(*_: object, **__: object) -> None:
        if not hub_answers:
            raise httpx.ConnectError("no route")

    cached = tmp_path / "models--small--gpt-oss"
    shutil.copytree(mxfp4_folder, cached / "snapshots" / "1")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kind = [f"model.weights={weights}", "model.experts_implementation=ftkit_lora"]
    loaded, expected = (
        load_base(small_run(path, *kind).model, training=True) for path in (Path("small/gpt-oss"), mxfp4_folder)
    )
    ids = torch.arange(10, 30)[None]
    assert torch.equal(loaded(ids).logits, expected(ids).logits)


def test_the_tokenizer_may_lie_elsewhere_and_gets_a_token_to_pad_with(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = load_tokenizer(small_run(tmp_path / "none", f"model.tokenizer={tmp_path / 'tokenizer'}").model)
    assert loaded.pad_token == "<|endoftext|>" and loaded.vocab == tokenizer.vocab


def test_a_smaller_vocabulary_is_another_shape(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "m", vocab_size=264)
    with pytest.raises(ConfigError, match="vocab_size: 288, and the checkpoint has 264"):
        small_run(folder)


def test_a_missing_extra_names_the_command_that_installs_it(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftkit.packages.find_spec", lambda name: None if name == "trl" else object())
    with pytest.raises(StageError, match="trl, which is not installed") as caught:
        load_base(small_run(model_folder).model)
    assert caught.value.cure == install_command("train")
