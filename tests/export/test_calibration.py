"""An export to MXFP4 that keeps too little of what was learnt is refused, or calibrated."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.merging import SERVING, refused
from helpers.small_model import save_token_rows, small_run
from safetensors.torch import load_file

from ftkit.export.merge import merge
from ftkit.training.train import train


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many, of so few tokens, that what is learnt of some holds for others."""
    path = save_token_rows(tmp_path_factory.mktemp("rows") / "tokens.parquet", [40] * 250)
    table = pq.read_table(path).to_pydict()
    for name in ("input_ids", "labels"):
        table[name] = [[token if token < 0 else 10 + token % 12 for token in row] for row in table[name]]
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture(scope="module")
def faint(mxfp4_folder: Path, many_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts' adapters of which no weight moves by half a step of the grid that the base's experts lie on."""
    folder, config = tmp_path_factory.mktemp("faint"), small_run(mxfp4_folder, *FAINT)
    train(config, tokens=many_rows, out=folder, checkpoints=folder / "checkpoints", say=lambda _: None)
    return folder / "adapter"


FAINT = ("sft.learning_rate=2e-3", "sft.max_steps=12", "lora.target_modules=[]", "merge.format=mxfp4")


def test_an_export_that_loses_the_training_is_refused(
    mxfp4_folder: Path, many_rows: Path, faint: Path, tmp_path: Path
) -> None:
    """Rounding takes back what experts have learnt. Guard: merge.keep in ``to_mxfp4``."""
    config = small_run(mxfp4_folder, *FAINT, "merge.calibration_steps=0")
    error = refused(config, r"MXFP4 keeps -?\d% of what", trained=faint, tokens=many_rows, out=tmp_path / "merged")
    cures = [line.strip().partition(" (")[0] for line in error.cure.splitlines()]
    assert "merge.keep asks for 80%" in error.what
    assert cures[1:] == ["merge.calibration_steps=300", "merge.format=bf16"]
    assert cures[0] == "stage=deploy deployment=local 'deployment.adapters={tuned: outputs/tiny}'"
    out = tmp_path / "bf16"
    merge(small_run(mxfp4_folder, *FAINT, cures[2]), trained=faint, tokens=many_rows, out=out, serving=SERVING)


@pytest.mark.slow
def test_calibration_brings_the_training_back(mxfp4_folder: Path, many_rows: Path, faint: Path, tmp_path: Path) -> None:
    """Biases and norms that are written stand in for the experts' adapters; router and vocabulary stay."""
    config, out = small_run(mxfp4_folder, *FAINT, "merge.keep=0.6"), tmp_path / "merged"
    result = merge(config, trained=faint, tokens=many_rows, out=out, serving=SERVING)
    rounding = result.rounding
    assert rounding and rounding.by_rounding < 0.1 and rounding.steps == 300
    assert (
        rounding.kept >= 0.6
        and f"of the training is kept, {rounding.by_rounding:.0%} before 300 steps of calibration" in result.summary
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (mxfp4_folder, out))
    changed = {name for name in before if not torch.equal(before[name].to(after[name].dtype), after[name])}
    assert {name for name in changed if name.endswith(("_proj_bias", "norm.weight"))}
    assert not [name for name in changed if ".router." in name or "embed" in name or "lm_head" in name]
