"""Merging: names on saving, stop tokens, and a merged model that is wrong is not kept."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.merging import SERVING, refused
from helpers.small_model import small_run
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GptOssForCausalLM, Mxfp4Config
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ftkit.chat.serving_defaults import ServingDefaults
from ftkit.errors import StageError
from ftkit.export import merge as merging
from ftkit.export.merge import MergeResult, Rounding, merge
from ftkit.models.gpt_oss import mxfp4_checkpoint as packed
from ftkit.models.loading import load_base, load_tokenizer
from ftkit.training.artifact import Origin
from ftkit.training.train import train


@pytest.fixture(scope="module")
def adapter(model_folder: Path, token_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(
        small_run(model_folder), tokens=token_file, out=folder, checkpoints=folder / "checkpoints", say=lambda _: None
    )
    return folder / "adapter"


@pytest.fixture
def merged(model_folder: Path, token_file: Path, adapter: Path, tmp_path: Path) -> tuple[Path, MergeResult]:
    out = tmp_path / "merged"
    return out, merge(small_run(model_folder), trained=adapter, tokens=token_file, out=out, serving=SERVING)


def test_the_merged_model_is_the_base_with_the_adapter(
    merged: tuple[Path, MergeResult], model_folder: Path, adapter: Path
) -> None:
    folder, result = merged
    ids = torch.tensor([[9, 8, 200, 30, 31, 32]])
    base = GptOssForCausalLM.from_pretrained(model_folder, attn_implementation="eager").eval()
    with torch.no_grad():
        before = base(ids).logits
        with_adapter = PeftModel.from_pretrained(base, str(adapter)).eval()(ids).logits
        after = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")(ids).logits
    assert (after - with_adapter).abs().max() < 1e-4 < 0.1 < (after - before).abs().max()
    assert result.max_difference < 1e-4 < result.mean_change and result.format == "fp32" and result.rows == 4
    assert "logits differ by" in result.summary


def test_the_folder_has_all_that_serving_needs(merged: tuple[Path, MergeResult]) -> None:
    """Answers do not end after their thinking. Guard: the parser's stop_ids in ``write``."""
    folder, _ = merged
    config = json.loads((folder / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stops = [tokenizer.convert_tokens_to_ids(name) for name in ("<|return|>", "<|call|>", "<|endoftext|>")]
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == stops and tokenizer.convert_tokens_to_ids("<|end|>") not in stops
    assert "quantization_config" not in config and config.get("use_cache", True) is True
    assert tokenizer.chat_template and ServingDefaults.read(folder) == SERVING
    assert list(folder.parent.iterdir()) == [folder]


def test_upstream_still_saves_a_dequantised_model_under_names_it_does_not_find(
    mxfp4_folder: Path, tmp_path: Path
) -> None:
    """Canary: when this fails, save_original_format=False in ``write`` is no longer needed."""
    load_base(small_run(mxfp4_folder).model).save_pretrained(tmp_path)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert any("experts" in name for name in info["missing_keys"])


def test_a_model_that_came_in_mxfp4_is_merged_dense(mxfp4_folder: Path, token_file: Path, tmp_path: Path) -> None:
    """Names that load again. Guard: save_original_format=False in ``write``."""
    config = small_run(mxfp4_folder)
    train(config, tokens=token_file, out=tmp_path / "train", checkpoints=tmp_path / "checkpoints", say=lambda _: None)
    out = tmp_path / "merged"
    result = merge(config, trained=tmp_path / "train" / "adapter", tokens=token_file, out=out, serving=SERVING)
    assert result.max_difference < 1e-4
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert not [name for name in load_file(out / "model.safetensors") if name.endswith(("_blocks", "_scales"))]


@pytest.mark.parametrize(("form", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_a_model_that_was_trained_whole_is_written_and_compared_as_a_merged_one(
    mxfp4_folder: Path, token_file: Path, tmp_path: Path, form: str, dtype: str
) -> None:
    """Every weight but the router's has moved; what is written is what was trained.

    Guards: save_original_format=False in write_weights, the router in train_all, for_all_weights in train.train.
    """
    ours = ("model.attn_implementation=ftkit_sinks", "model.experts_implementation=ftkit_lora")
    config = small_run(mxfp4_folder, *ours, "lora=none", "sft.max_steps=3", f"merge.format={form}")
    said: list[str] = []
    trained, out = tmp_path / "train" / "model", tmp_path / "merged"
    train(config, tokens=token_file, out=trained.parent, checkpoints=tmp_path / "checkpoints", say=said.append)
    assert said[0] == "grouped_mm experts in place of ftkit_lora, which trains adapters alone"
    assert "not fused: there is no CUDA GPU" in said[1] and "router frozen" in said[3]
    result = merge(config, trained=trained, tokens=token_file, out=out, serving=SERVING)
    assert result.max_difference == 0 < 0.01 < result.mean_change and result.format == form
    base, found = load_base(config.model).state_dict(), load_file(out / "model.safetensors")
    moved = {name for name, weight in load_file(trained / "model.safetensors").items() if not weight.equal(base[name])}
    assert moved == {name for name in base if ".router." not in name}
    assert found.keys() == base.keys() and found["lm_head.weight"].dtype == getattr(torch, dtype)


def test_a_training_that_changes_nothing_is_refused(model_folder: Path, token_file: Path, tmp_path: Path) -> None:
    """The base itself in the place of what was trained."""
    config = small_run(model_folder, "lora=none")
    idle = Path(shutil.copytree(model_folder, tmp_path / "model"))
    refused(config, "no finished model", trained=idle, tokens=token_file, out=tmp_path / "merged")
    Origin.of(config, global_step=9, max_steps=9).write(idle)
    refused(config, "the model changes nothing", trained=idle, tokens=token_file, out=tmp_path / "merged")


@contextmanager
def is_told_its_size(folder: Path, total: int) -> Iterator[None]:
    """A watcher of ``merge`` that holds the bytes it is told before against those that are written."""
    yield
    assert total == sum(t.nbytes for file in folder.glob("*.safetensors") for t in load_file(file).values()) > 0


@pytest.mark.parametrize("form", ["fp32", "mxfp4"])
def test_each_weight_that_is_read_back_is_counted(
    model_folder: Path, token_file: Path, adapter: Path, tmp_path: Path, form: str
) -> None:
    """Of the written model alone. Guard: told_of_weights in merge."""
    config, told = small_run(model_folder, f"merge.format={form}", "merge.keep=0"), list[tuple[int, int]]()

    @contextmanager
    def counted() -> Iterator[Callable[[int, int], object]]:
        assert not told
        yield lambda more, of: told.append((more, of))

    merge(config, trained=adapter, tokens=token_file, out=tmp_path / "merged", serving=SERVING, counted=counted)
    done, total = (sum(numbers) for numbers in zip(*told, strict=True))
    weights = len(AutoModelForCausalLM.from_pretrained(model_folder).state_dict())
    assert done == total >= weights and len(told) > weights


def test_bfloat16_is_held_to_the_mean(model_folder: Path, token_file: Path, adapter: Path, tmp_path: Path) -> None:
    config, out = small_run(model_folder, "merge.format=bf16"), tmp_path / "merged"
    result = merge(config, trained=adapter, tokens=token_file, out=out, serving=SERVING, watched=is_told_its_size)
    assert result.format == "bf16" and 0 < result.mean_difference < 0.05 * result.spread
    assert load_file(tmp_path / "merged" / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16


def test_a_difference_that_the_model_has_from_itself_is_not_held_against_bfloat16(model_folder: Path) -> None:
    """Guard: NOISE in compare, for a model that routes indecisively: 6 % of the spread, and 3.5 % are its own."""
    config = small_run(model_folder, "merge.format=bf16")
    meant = torch.randn(8, 1000)
    others = {"of_base": meant + 1, "meant": meant, "of_merged": meant + 0.06 * meant.std()}
    result = merging.compare(**others, config=config, noise=lambda: 0.035 * meant.std().item())
    assert result["mean_difference"] > 0.05 * result["spread"]
    with pytest.raises(StageError, match=r"tolerance 0\.05 of it, rounding alone 0\.0201; it was not kept"):
        merging.compare(**others, config=config, noise=lambda: 0.02 * meant.std().item())


def test_the_noise_of_a_model_is_what_rounding_does_to_it(model: GptOssForCausalLM) -> None:
    """Of the same size as what rounding its float32 weights changes, and the model is left as it was."""
    exact = merging.logits(model, [[5, 6, 7, 8, 9]])
    model.to(torch.bfloat16).float()
    rounded = (merging.logits(model, [[5, 6, 7, 8, 9]]) - exact).abs().mean().item()
    half = model.to(torch.bfloat16)
    before = {name: weight.clone() for name, weight in half.named_parameters()}
    assert rounded / 4 < merging.noise(half, [[5, 6, 7, 8, 9]]) < 4 * rounded
    assert all(torch.equal(before[name], weight) for name, weight in half.named_parameters())


def test_mxfp4_is_written_as_the_published_checkpoint_and_rounds_within_the_format(
    mxfp4_folder: Path, merged: tuple[Path, MergeResult], model_folder: Path, token_file: Path, adapter: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In several shards; what transformers loads of them is compared with the merge in float32."""
    monkeypatch.setattr(packed, "LARGEST_SHARD", "20KB")
    out, config = tmp_path / "packed", small_run(model_folder, "merge.format=mxfp4", "merge.keep=0")
    result = merge(config, trained=adapter, tokens=token_file, out=out, serving=SERVING, watched=is_told_its_size)
    shards = sorted(out.glob("model-*.safetensors"))
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    written = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    published = load_file(mxfp4_folder / "model.safetensors")
    assert len(shards) > 2 and index.keys() == written.keys() == published.keys()
    for name, tensor in published.items():
        dtype = torch.uint8 if name.endswith(("_blocks", "_scales")) else torch.bfloat16
        assert (written[name].shape, written[name].dtype) == (tensor.shape, dtype), name
    quantization = [json.loads((f / "config.json").read_text())["quantization_config"] for f in (out, mxfp4_folder)]
    assert quantization[0] == quantization[1]
    dense = load_file(merged[0] / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)
    ).state_dict()
    squares = torch.zeros(2)
    for name in [name for name in dense if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        blocks, error = dense[name].unflatten(1, (-1, 32)), (loaded[name] - dense[name]).unflatten(1, (-1, 32))
        largest = blocks.abs().amax(2, keepdim=True) * (1 + 2**-8)  # the merge was in bfloat16
        assert (error.abs() <= largest / 4).all()
        squares += torch.stack([error.square().sum(), blocks.square().sum()])
    rounding = result.rounding
    assert rounding and rounding.weights == pytest.approx((squares[0] / squares[1]).sqrt().item(), rel=0.01)
    assert 0 < rounding.logits < result.spread and result.max_difference == 0
    assert f"rounding to MXFP4 by {rounding.logits:.2g} (expert weights by {rounding.weights:.1%})" in result.summary
    assert rounding.steps == 0 and rounding.kept == rounding.by_rounding


def test_what_mxfp4_can_hold_is_exported_exactly(mxfp4_folder: Path, token_file: Path, tmp_path: Path) -> None:
    """With an adapter on the attention alone, the experts are the published ones."""
    config = small_run(mxfp4_folder, "lora=attention", "merge.format=mxfp4", "sft.max_steps=2")
    train(config, tokens=token_file, out=tmp_path / "train", checkpoints=tmp_path / "checkpoints", say=lambda _: None)
    out = tmp_path / "merged"
    result = merge(config, trained=tmp_path / "train" / "adapter", tokens=token_file, out=out, serving=SERVING)
    assert result.rounding == Rounding(0, 0, kept=1, by_rounding=1, steps=0)
    before, after = (load_file(folder / "model.safetensors") for folder in (mxfp4_folder, out))
    unpacked = [
        convert_moe_packed_tensors(weights[f"{name}_blocks"], weights[f"{name}_scales"])
        for name in ("model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj")
        for weights in (before, after)
    ]
    assert torch.equal(unpacked[0], unpacked[1]) and torch.equal(unpacked[2], unpacked[3])


Weights = dict[str, torch.Tensor]


def changed(file: Path, change: Callable[[Weights], None]) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


DOWN = "model.layers.0.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("form", "change", "said"),
    [
        ("fp32", lambda weights: weights["model.layers.0.self_attn.o_proj.weight"].mul_(1.05), "max difference"),
        ("fp32", lambda weights: weights["lm_head.weight"][9].mul_(1.05), "max difference"),
        ("bf16", lambda weights: weights["lm_head.weight"].mul_(1.2), "mean difference"),
        ("bf16", lambda weights: weights["lm_head.weight"].fill_(torch.nan), "mean difference of logits nan"),
        ("mxfp4", lambda weights: weights[f"{DOWN}_scales"].add_(1), "mean difference"),
        ("fp32", lambda weights: weights.update({f"{DOWN}_blocks": weights.pop(DOWN)}), f"are missing: {DOWN}"),
    ],
    ids=["a layer", "one logit", "all logits", "no numbers", "packed", "another name"],
)
def test_a_model_that_reads_back_otherwise_is_not_kept(
    model_folder: Path, token_file: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    form: str, change: Callable[[Weights], None], said: str,
) -> None:  # fmt: skip
    """Guards: compare with what was meant, and check_complete, both after reading back."""
    write = merging.write

    def damaged(model: Any, tokenizer: Any, folder: Path, *arguments: Any, **named: Any) -> None:
        write(model, tokenizer, folder, *arguments, **named)
        changed(folder / "model.safetensors", change)

    monkeypatch.setattr(merging, "write", damaged)
    config = small_run(model_folder, f"merge.format={form}", "merge.keep=0")
    refused(config, said, trained=adapter, tokens=token_file, out=tmp_path / "merged")


def test_a_tokenizer_without_the_tokens_that_end_an_answer_is_refused(
    model_folder: Path, token_file: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: ``parser_of`` in ``write``."""
    tokenizer = load_tokenizer(small_run(model_folder).model)
    tokenizer.chat_template, tokenizer.eos_token = None, None
    monkeypatch.setattr(merging, "load_tokenizer", lambda _model: tokenizer)
    monkeypatch.setattr("ftkit.chat.format.writes_harmony", lambda _tokenizer: False)
    config, out = small_run(model_folder), tmp_path / "merged"
    refused(config, "has no chat template", trained=adapter, tokens=token_file, out=out)


def test_a_disk_that_is_full_is_named(
    model_folder: Path, token_file: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: ``saving`` in merge, whichever library meets it."""

    def full(*arguments: Any, **named: Any) -> None:
        raise SafetensorError(f"I/O error: No space left on device (os error {errno.ENOSPC})")

    monkeypatch.setattr(merging, "write", full)
    out = tmp_path / "merged"
    error = refused(small_run(model_folder), "the disk is full", trained=adapter, tokens=token_file, out=out)
    assert error.where == str(out)


@pytest.mark.parametrize("form", ["fp32", "mxfp4"])
def test_an_adapter_that_changes_nothing_is_refused(
    model_folder: Path, token_file: Path, adapter: Path, tmp_path: Path, form: str
) -> None:
    """Rounding to MXFP4 would change something: it is compared before that as well. Guards: both calls of compare."""

    def idle(weights: Weights) -> None:
        for name in weights:
            weights[name] *= "lora_B" not in name

    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    changed(folder / "adapter_model.safetensors", idle)
    config, out = small_run(model_folder, f"merge.format={form}"), tmp_path / "merged"
    refused(config, "changes nothing", trained=folder, tokens=token_file, out=out)


def test_an_earlier_merged_model_stays_when_the_new_one_fails(
    merged: tuple[Path, MergeResult],
    model_folder: Path,
    token_file: Path,
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _ = merged
    monkeypatch.setattr(merging, "TOLERANCE", {"fp32": -1.0})
    with pytest.raises(StageError, match="differs"):
        merge(small_run(model_folder), trained=adapter, tokens=token_file, out=folder, serving=SERVING)
    assert (folder / "model.safetensors").is_file() and list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("model.pretrained_model_name_or_path", "openai/gpt-oss-20b"),
        ("model.revision", "v2"),
    ],
)
def test_an_adapter_for_another_base_is_refused(
    model_folder: Path, token_file: Path, adapter: Path, tmp_path: Path, key: str, other: object
) -> None:
    """Guard: the names that check_trained compares; nothing has been loaded then."""
    config, out = small_run(model_folder, f"{key}={other}"), tmp_path / "merged"
    error = refused(config, "the adapter was made for model.", trained=adapter, tokens=token_file, out=out)
    assert key.startswith(error.what.partition("was made for ")[2].partition("=")[0])
    assert error.cure == "stage=train,merge"


def test_an_adapter_that_is_unfinished_or_missing_is_refused(
    model_folder: Path, token_file: Path, adapter: Path, tmp_path: Path
) -> None:
    """Guard: the comparison of global_step with max_steps in check_trained."""
    config, out = small_run(model_folder), tmp_path / "merged"
    refused(config, "no finished adapter", trained=tmp_path / "none", tokens=token_file, out=out)
    refused(
        config,
        "no finished adapter",
        trained=adapter.parent / "checkpoints" / "checkpoint-15",
        tokens=token_file,
        out=out,
    )
    early = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    origin = json.loads((early / "ftkit_trained.json").read_text()) | {"global_step": 9}
    (early / "ftkit_trained.json").write_text(json.dumps(origin))
    refused(config, "interrupted at step 9 of 16", trained=early, tokens=token_file, out=out)
    (early / "ftkit_trained.json").write_text("{")
    refused(config, "cannot be read", trained=early, tokens=token_file, out=out)
