"""FSDP2 on two gloo processes: it trains as one process does, and goes on after an interruption; what DDP sends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.runs import Run, command
from helpers.small_model import save_token_rows, small_run
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from ftkit.models.loading import load_base
from ftkit.models.lora import add_lora
from ftkit.serving.endpoint.adapter_effect import Effect
from ftkit.training.sharding import leave_frozen_alone

STEPS = ["sft.packing=true", "sft.max_length=40", "sft.per_device_train_batch_size=1", "sft.max_steps=4",
         "sft.gradient_checkpointing=true", "sft.save_steps=2", "sft.eval_strategy=steps",
         "sft.eval_steps=2"]  # fmt: skip
FULL = ["lora=none", "sft.learning_rate=1e-3"]
LORA = ["model.attn_implementation=ftkit_sinks", "model.experts_implementation=ftkit_lora"]
SHARDED = ["sft.fsdp=true", "compute.gpus_per_node=2", "sft.gradient_accumulation_steps=2"]
ONE = "sft.gradient_accumulation_steps=4"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 packed rows to train on and 3 held out, so that one process has a batch less to evaluate than the other."""
    split = ["train", "train"] * 16 + ["heldout"] * 3
    return save_token_rows(tmp_path_factory.mktemp("rows") / "tokens.parquet", [11, 29] * 16 + [40] * 3, split=split)


def in_two_processes(run: Run, stop_at: str = "never") -> subprocess.CompletedProcess[str]:
    """A line that begins with ``stop_at`` has the first process get SIGTERM."""
    script, *arguments = command(run, stop_at)
    text = Path(script).read_text()
    Path(script).write_text(text.replace("signal.pause()", "signal.raise_signal(signal.SIGTERM)"))
    return by_torchrun(script, *arguments)


def by_torchrun(*script: str) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run([*torchrun, *script], capture_output=True, text=True, timeout=200, check=False)


def same(sharded: Run, one: Run, file: str) -> None:
    for key in ("step", "loss", "eval_loss", "grad_norm", "learning_rate", "tokens", "loss_tokens"):
        lines = [[line[key] for line in run.metrics if key in line] for run in (sharded, one)]
        assert lines[0] and lines[0] == pytest.approx(lines[1], rel=1e-3), key
    weights = load_file(one.out / file)
    found = load_file(sharded.out / file)
    assert found.keys() == weights.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4, msg=name)


def test_full_fine_tuning_that_is_sharded_and_interrupted_is_that_of_one_process(
    model_folder: Path, tokens: Path, tmp_path: Path
) -> None:
    """Guards: shard_on_cpus in set_up, and the late list of weights in trainer._visit_less."""
    one = Run(small_run(model_folder, *STEPS, *FULL, ONE), tokens, tmp_path / "one")
    one.train()
    two = Run(small_run(model_folder, *STEPS, *FULL, *SHARDED), tokens, tmp_path / "two")
    stopped = in_two_processes(two, "step 2/")
    assert stopped.returncode != 0 and "stopped after step 3 of 4" in stopped.stderr, stopped.stderr
    names = {path.name for path in (two.checkpoints / "checkpoint-3" / "pytorch_model_fsdp_0").iterdir()}
    assert names == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    done = in_two_processes(two)
    assert done.returncode == 0 and "resuming from step 3 of 4" in done.stdout, done.stderr
    same(two, one, "model/model.safetensors")

    shutil.rmtree(two.out / "model")
    again = in_two_processes(two)
    assert again.returncode == 0 and "step 4/4" not in again.stdout, again.stderr
    same(two, one, "model/model.safetensors")


def test_sharded_adapters_are_those_of_one_process(model_folder: Path, tokens: Path, tmp_path: Path) -> None:
    """ftkit's own experts and attention run in plain torch then, and say so."""
    one = Run(small_run(model_folder, *STEPS, *LORA, ONE), tokens, tmp_path / "one")
    one.train()
    often = ["sft.save_steps=100", "sft.save_minutes=1e-9", "sft.save_total_limit=9"]
    two = Run(small_run(model_folder, *STEPS, *LORA, *often, *SHARDED), tokens, tmp_path / "two")
    done = in_two_processes(two)
    assert done.returncode == 0 and "; not fused: " in done.stdout, done.stderr
    same(two, one, "adapter/adapter_model.safetensors")
    found, exact = (Effect.read(run.out / "effect.json") for run in (two, one))
    assert exact.compare(found.base, found.parts["whole"]).startswith("as trained: ")
    assert len(list(two.checkpoints.glob("checkpoint-*"))) == 4, "every process finds its last checkpoint old enough"


def test_only_the_first_process_reads_the_weights(model_folder: Path, tokens: Path, tmp_path: Path) -> None:
    """Guards: ``first_process`` and ``together`` in build._sharded_base: 8 × 84 GB of memory would be read for
    gpt-oss-20b, and an error of the first would leave the others waiting."""
    run = Run(small_run(model_folder, *STEPS, *FULL, *SHARDED, "sft.max_steps=1"), tokens, tmp_path / "run")
    script, *arguments = command(run)
    text = Path(script).read_text()
    loader = (
        "import os\nfrom ftkit.errors import StageError\nfrom ftkit.training import build\nread = build.load_base\n"
    )
    loader += (
        "def load_base(*args, **options):\n    assert os.environ['RANK'] == '0'\n    {}\nbuild.load_base = load_base\n"
    )
    Path(script).write_text(loader.format("return read(*args, **options)") + text)
    done = by_torchrun(script, *arguments)
    assert done.returncode == 0 and "packed documents do not notice" in done.stdout, done.stderr

    shutil.rmtree(run.checkpoints)
    Path(script).write_text(loader.format("raise StageError('the shard is cut off')") + text)
    done = by_torchrun(script, *arguments)
    assert done.returncode != 0 and "another process reports: the shard is cut off" in done.stderr, done.stderr


def test_processes_that_would_not_be_sharded_are_refused(model_folder: Path, tokens: Path, tmp_path: Path) -> None:
    """Guard: ``is_fsdp_enabled`` in set_up; shard_on_cpus is taken out."""
    script, *arguments = command(Run(small_run(model_folder, *STEPS, *FULL, *SHARDED), tokens, tmp_path))
    with_out = "from ftkit.training import sharding\nsharding.shard_on_cpus = lambda: None\n"
    Path(script).write_text(with_out + Path(script).read_text())
    done = by_torchrun(script, *arguments)
    assert done.returncode != 0 and "accelerate does not shard these processes" in done.stderr, done.stderr


TOGETHER = """
import os
from accelerate import PartialState
from ftkit.errors import StageError
from ftkit.training.collectives import together

state = PartialState(cpu=True)
def work():
    if os.environ["RANK"] == "0":
        raise StageError("the disk is full")
try:
    together(work)
except StageError as error:
    os.write(1, f"{os.environ['RANK']} {error.what}\\n".encode())  # in one piece, between the other process's
state.destroy_process_group()
"""


def test_what_fails_on_one_process_fails_on_all(tmp_path: Path) -> None:
    """Guard: ``failed`` in trainer.together; a process that goes on alone waits for ever at the next step."""
    (tmp_path / "together.py").write_text(TOGETHER)
    done = by_torchrun(str(tmp_path / "together.py"))
    said = sorted(done.stdout.splitlines())
    assert said[0] == "0 the disk is full" and said[1].startswith("1 another process reports: the disk is full"), done


UPSTREAM = """
from accelerate import Accelerator, FullyShardedDataParallelPlugin
print(Accelerator(cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2)).distributed_type)
"""


def test_upstream_still_shards_on_gpus_alone() -> None:
    """Canary: when this fails, ``sharding.shard_on_cpus`` is no longer needed."""
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": "0", "ACCELERATE_USE_FSDP": ""}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", UPSTREAM], env=os.environ | group, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "DistributedType.MULTI_CPU", done.stderr


def test_the_loss_of_sharded_bfloat16_is_no_coarser_than_that_of_one_process(
    model_folder: Path, tokens: Path, tmp_path: Path
) -> None:
    """Guard: sharding.precision in setup.sft_config. A sum of losses in bfloat16 is off by up to 0.4 %."""
    mixed = [*STEPS, "sft.bf16=true", "model.dtype=bfloat16", "sft.eval_strategy=no"]
    one = Run(small_run(model_folder, *mixed, ONE), tokens, tmp_path / "one")
    one.train()
    sharded = Run(small_run(model_folder, *mixed, *SHARDED), tokens, tmp_path / "sharded")
    done = in_two_processes(sharded)
    assert done.returncode == 0, done.stderr
    assert sharded.metrics[0]["loss"] == pytest.approx(one.metrics[0]["loss"], rel=2e-4)


def test_ddp_sends_no_frozen_weight_and_no_buffer(mxfp4_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: leave_frozen_alone, as setup._model calls it. NCCL refuses to send the hollow experts of a base in
    MXFP4; gloo sends them, so that on CPUs a training shows no difference."""
    config = small_run(mxfp4_folder, "model.weights=mxfp4", "model.experts_implementation=ftkit_lora")
    assert config.lora
    model, trained = add_lora(load_base(config.model, training=True), config.lora)
    leave_frozen_alone(model)
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(dist, "_broadcast_coalesced", lambda _group, tensors, *_: sent.extend(tensors))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        assert sum(tensor.numel() for tensor in sent) == trained.parameters
        assert not wrapped.modules_buffers
    finally:
        dist.destroy_process_group()
