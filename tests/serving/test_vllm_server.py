"""The process of vLLM, by a stand-in that loads nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from helpers.command import REPOSITORY
from transformers import AutoTokenizer

from ftkit.assets import asset_path
from ftkit.chat.messages import ModelError
from ftkit.serving.endpoint.limits import Limits
from ftkit.serving.endpoint.loading import load_tokenizer
from ftkit.serving.endpoint.service import Served
from ftkit.serving.endpoint.vllm_server import STARTS_SOONER, VllmServer

pytestmark = pytest.mark.skipif(shutil.which("vllm") is not None, reason="the real one would be started")

STAND_IN = REPOSITORY / "tests" / "helpers" / "vllm_light.py"
FRONT = """
import json, sys
from ftkit.serving import score
from ftkit.serving.endpoint.requests import parse_request
score.init()
served = score._served
chat = {"model": "", "messages": [{"role": "user", "content": "1"}], "max_tokens": 1}
tools = [{"type": "function", "function": {"name": "add"}}]
for question in ({"prompt": "1", "max_new_tokens": 1}, chat, chat | {"tools": tools}):
    served.begin(parse_request(json.dumps(question), served.rules)).whole()
print("torch" in sys.modules, flush=True)
served.engine.stop()
"""


@pytest.fixture(autouse=True)
def started_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in as ``vllm``; the files that the process has loaded by then that starts it, once it has."""
    script, loaded = tmp_path / "vllm", tmp_path / "loaded"
    start = f'cat "/proc/$PPID/maps" > "{loaded}"\nexec "{sys.executable}" "{STAND_IN}" "$@"'
    script.write_text(f"#!/bin/sh\n{start}\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return loaded


def stand_ins() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if str(STAND_IN) in one.cmdline()]


KERNELS = "TRITON_CACHE_DIR"


@pytest.mark.parametrize(
    ("own", "kernels"),
    [
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/vllm/triton"),
        ({"VLLM_CACHE_ROOT": "/mnt/vllm", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}, "/mnt/vllm/triton"),
        ({"VLLM_CACHE_ROOT": "/mnt/vllm", KERNELS: "/mnt/triton"}, "/mnt/triton"),
        ({}, str(Path.home() / ".cache" / "vllm" / "triton")),
        ({"VLLM_CACHE_ROOT": "~nobody-of-this-name/vllm"}, "~nobody-of-this-name/vllm/triton"),
    ],
)
def test_it_is_told_how_to_start_sooner_unless_the_endpoint_says_otherwise(
    own: dict[str, str], kernels: str, monkeypatch: pytest.MonkeyPatch
):
    """Guard: TRITON_CACHE_DIR, without which a second start compiles Triton's kernels again."""
    for name in (*STARTS_SOONER, KERNELS, "XDG_CACHE_HOME", "VLLM_CACHE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    server = VllmServer(["model", "--served-model-name", "tiny"])
    server.wait()
    (process,) = stand_ins()
    told = process.environ()
    server.stop()
    for name, value in {**STARTS_SOONER, KERNELS: kernels, **own}.items():
        assert told[name] == value


def test_score_starts_it_before_it_loads_the_tokenizer_and_never_loads_torch(tiny: Path, started_with: Path):
    """Guards: the order in VllmEngine; load_tokenizer; check_weights, which has safetensors import torch with "pt"."""
    settings = {"AZUREML_MODEL_DIR": str(tiny), "FTKIT_ENGINE": "vllm", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", FRONT], env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    loaded = {Path(line.split()[-1]).name for line in started_with.read_text(encoding="utf-8").splitlines()}
    assert not [name for name in loaded if name.startswith(("libtorch", "tokenizers"))]
    assert [name for name in loaded if name.startswith("_safetensors")], "it has looked at the weights before"


def test_it_ends_if_the_tokenizer_cannot_be_used(tiny: Path, tmp_path: Path):
    """Guard: VllmServer.leave."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="tiny holds no chat template"):
        Served(folder, Limits(), engine="vllm")
    assert not stand_ins()


@pytest.mark.parametrize("declared", ["", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("model", ["tiny-gpt-oss", "tiny-qwen3"])
def test_the_tokenizer_is_the_one_of_training(model: str, declared: str, tmp_path: Path):
    folder = tmp_path / model
    shutil.copytree(asset_path(f"package:{model}"), folder)
    if declared:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"tokenizer_class": declared}), encoding="utf-8")
    own, usual = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert type(own) is type(usual) and own.get_vocab() == usual.get_vocab()
    chat = [{"role": "user", "content": "12 メートル"}]
    texts = [one.apply_chat_template(chat, tokenize=False) for one in (own, usual)]
    assert texts[0] == texts[1] and own(texts[0])["input_ids"] == usual(texts[1])["input_ids"]
