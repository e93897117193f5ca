"""A training of the small model in a folder of its own, in this process or in one that is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ftkit.config.resolve import freeze
from ftkit.config.schema import Config
from ftkit.training.build import set_up
from ftkit.training.methods import method_of
from ftkit.training.train import TrainResult, train
from helpers.command import read_until


@dataclass(frozen=True)
class Run:
    """A training run in a folder of its own."""

    config: Config
    tokens: Path
    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "train"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.out / "adapter" / "adapter_model.safetensors")

    def train(self) -> tuple[TrainResult, list[str]]:
        said: list[str] = []
        return train(self.config, tokens=self.tokens, out=self.out, checkpoints=self.checkpoints, say=said.append), said


def trainer_that_moved(config: Config, rows: Path, folder: Path) -> Any:
    """A trainer whose adapter changes something already."""
    trainer, _, _ = set_up(config, method_of(config).arguments(config, folder), rows, lambda line: None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if ".lora_B." in name:
                weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    return trainer


WORKER = """
import signal, sys, threading
from pathlib import Path
from ftkit.config.resolve import load_frozen
from ftkit.processes import end_now
from ftkit.training.train import train

config, tokens, out, checkpoints, stop_at = sys.argv[1:]

def say(line):
    stops = line.startswith(stop_at)
    for thread in threading.enumerate():
        if stops and thread.name == "checkpoint":
            thread.join()
    print(line, flush=True)
    if stops:
        signal.pause()

train(load_frozen(Path(config)), tokens=Path(tokens), out=Path(out), checkpoints=Path(checkpoints), say=say)
end_now(0)
"""


def command(run: Run, stop_at: str = "never") -> list[str]:
    run.folder.mkdir(exist_ok=True)
    script, frozen = run.folder / "worker.py", run.folder / "config.yaml"
    script.write_text(WORKER)
    freeze(run.config, frozen)
    return [str(script), str(frozen), str(run.tokens), str(run.out), str(run.checkpoints), stop_at]


def kill_at(run: Run, line: str) -> None:
    """Train in a process of its own, and kill it when it has printed a line; checkpoints saved until then are whole."""
    process = subprocess.Popen([sys.executable, *command(run, line)], stdout=subprocess.PIPE, text=True)
    read_until(process, line)
    process.kill()
    process.wait()
