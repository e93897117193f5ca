"""Every family trains, keeps packed documents apart, merges to what was trained, and freezes its router."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.runs import Run
from helpers.small_families import SHAPES, save_small
from helpers.small_model import save_token_rows
from safetensors.torch import load_file

from ftkit.chat.serving_defaults import ServingDefaults
from ftkit.config.resolve import resolve
from ftkit.errors import StageError
from ftkit.export.merge import merge
from ftkit.families import family_of
from ftkit.models.loading import load_base
from ftkit.models.lora import train_all
from ftkit.training import build

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save_small(family, tmp_path_factory.mktemp(family)) for family in SHAPES}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_token_rows(tmp_path_factory.mktemp("rows") / "tokens.parquet", [10 + (7 * i) % 31 for i in range(20)])


def fastest(name: str) -> list[str]:
    """What ``auto`` takes for a family on a GPU."""
    family = family_of(name)
    return [f"model.attn_implementation={family.attention[0]}", f"model.experts_implementation={family.experts[0]}"]


def run_of(folder: Path, tokens: Path, out: Path, *overrides: str) -> Run:
    config = resolve(
        ["experiment=tiny", f"model.pretrained_model_name_or_path={folder}", "sft.max_length=64", "sft.max_steps=4",
         "sft.per_device_train_batch_size=2", "sft.learning_rate=1e-2", "sft.eval_strategy=no", "sft.packing=true",
         "sft.warmup_steps=0", *overrides]
    )  # fmt: skip
    return Run(config, tokens, out)


@pytest.mark.parametrize("family", sorted(SHAPES))
def test_packed_training_gives_the_losses_of_stock_transformers(
    family: str, folders: dict[str, Path], tokens: Path, tmp_path: Path
) -> None:
    plain = ["model.attn_implementation=eager", "model.experts_implementation=eager"]
    ours, said = run_of(folders[family], tokens, tmp_path / "ours", *fastest(family)).train()
    stock, _ = run_of(folders[family], tokens, tmp_path / "stock", *plain).train()
    assert any("packed documents do not notice" in line for line in said)
    assert [family_of(family).router != ()] == ["router" in line for line in said if " parameters" in line]
    assert ours.first_loss == pytest.approx(stock.first_loss, abs=2e-6)
    assert ours.last_loss == pytest.approx(stock.last_loss, abs=2e-4)


@pytest.mark.parametrize("family", sorted(SHAPES))
def test_the_merged_model_is_what_was_trained(
    family: str, folders: dict[str, Path], tokens: Path, tmp_path: Path
) -> None:
    run = run_of(folders[family], tokens, tmp_path, *fastest(family))
    run.train()
    result = merge(
        run.config, trained=run.out / "adapter", tokens=tokens, out=tmp_path / "merged", serving=ServingDefaults()
    )
    assert result.max_difference < 1e-5 < result.mean_change
    base = load_file(folders[family] / "model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    router = family_of(run.config.model.architecture.model_type).router
    assert base.keys() == merged.keys()
    frozen = [name for name in base if any(part in name for part in router) or "norm" in name or "embed" in name]
    assert all(torch.equal(base[name], merged[name]) for name in frozen)


def test_full_fine_tuning_freezes_the_router_whatever_its_name(folders: dict[str, Path]) -> None:
    config = resolve(["experiment=tiny", f"model.pretrained_model_name_or_path={folders['qwen3_moe']}", "stage=plan"])
    model = load_base(config.model, dtype="float32", training=True)
    trained = train_all(model, family_of("qwen3_moe"))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"model.layers.{i}.mlp.gate.weight" for i in range(2)} and trained.tensors == 4


def test_documents_that_see_each_other_are_found_in_every_family(
    folders: dict[str, Path], tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: the check of the first packed row. Positions that go on from document to document hide the bounds."""
    from ftkit.training import collator

    monkeypatch.setattr(collator, "_positions", lambda documents, length: torch.arange(length).numpy())
    run = run_of(folders["qwen3"], tokens, tmp_path, "model.attn_implementation=sdpa")
    with pytest.raises(StageError, match="packed documents see each other"):
        run.train()
    assert build  # the check is set up there
