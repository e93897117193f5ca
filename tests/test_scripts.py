"""The Python scripts start: each imports, so no name in it has gone; make_tiny makes the rows that it trains on."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from helpers.command import REPOSITORY
from helpers.scripts import load_script

SCRIPTS = sorted(
    path.name for path in (REPOSITORY / "scripts").iterdir() if path.is_file() and b"python" in path.read_bytes()[:30]
)


def test_there_are_scripts_of_python() -> None:
    assert {"make_tiny", "bench_train", "check_gpu"} <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_imports(name: str) -> None:
    if name in ("check_gpu", "bench_fp8"):
        pytest.importorskip("triton")  # which comes with torch for CUDA alone
    assert load_script(name).__doc__


def test_the_demo_takes_another_port_than_one_in_use_but_keeps_its_own(tmp_path: Path) -> None:
    free_port = load_script("free_port").free_port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port, tmp_path) not in (port, 0)
        own = tmp_path / "_workspace" / "endpoints" / "tiny" / "endpoint.json"
        own.parent.mkdir(parents=True)
        own.write_text(f'{{"port": {port}}}', encoding="utf-8")
        assert free_port(port, tmp_path) == port


def test_make_tiny_makes_rows_and_their_loss() -> None:
    from transformers import AutoTokenizer, GptOssConfig, GptOssForCausalLM

    from ftkit.assets import asset_path

    script = load_script("make_tiny")
    tokenizer = AutoTokenizer.from_pretrained(asset_path("package:tiny-gpt-oss"))
    rows = next(script.Diet(tokenizer, 0, set()).batches(2, bare=False))
    assert all(row.input_ids[-1] == tokenizer.convert_tokens_to_ids("<|return|>") for row in rows)
    said = tokenizer.decode(rows[0].input_ids[rows[0].prompt_length :])
    assert said.startswith("<|channel|>analysis<|message|>")
    (bare,) = next(script.Diet(tokenizer, 0, set()).batches(1, bare=True))
    assert tokenizer.decode(bare.input_ids).startswith("<|start|>user<|message|>")
    model = GptOssForCausalLM(GptOssConfig(**{**script.ARCHITECTURE, "num_hidden_layers": 1}))
    assert 0 < script.completion_loss(model, rows).item() < 20


class Registry(BaseHTTPRequestHandler):
    """A registry that knows one tag."""

    def do_HEAD(self) -> None:
        known = self.path == "/v2/azureml/base/manifests/v2" and "image.index" in self.headers["Accept"]
        self.send_response(200 if known else 404)
        self.send_header("Docker-Content-Digest", f"sha256:{'a' * 64}")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.mark.parametrize("before", ["", f"@sha256:{'b' * 64}"])
def test_base_images_are_pinned_by_what_their_registry_serves_under_the_tag(before: str) -> None:
    script = load_script("pin_images")
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        mirror = f"http://127.0.0.1:{server.server_port}"
        text = f"# An image.\nFROM mcr.example/azureml/base:v1{before}\nRUN true\n"
        expected = f"# An image.\nFROM mcr.example/azureml/base:v2@sha256:{'a' * 64}\nRUN true\n"
        assert script.pinned(text, mirror, "v2") == expected
        with pytest.raises(OSError):
            script.pinned(text, mirror, None)
        server.shutdown()


def test_the_images_of_ftkit_have_a_base_that_can_be_pinned() -> None:
    script = load_script("pin_images")
    assert all(script.BASE.search(path.read_text(encoding="utf-8")) for path in script.DOCKERFILES)


def test_the_demo_hands_its_overrides_and_a_free_port_to_every_command(tmp_path: Path) -> None:
    """With a Python that writes down what it is asked to run."""
    pinned = ("pyproject.toml", "environment/requirements.txt")
    for name in ("scripts/demo", "scripts/setup", "scripts/free_port", *pinned):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n[ "$1" = scripts/free_port ] && exec {sys.executable} "$@"\necho "$@" >> asked\n')
    python.chmod(0o755)
    digest = f"cat {' '.join(pinned)} | sha256sum > .venv/.ftkit-installed"
    subprocess.run(["bash", "-c", digest], cwd=tmp_path, check=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 5001))
        taken.listen()
        for given in (["lora.r=16"], ["deployment.port=5005"]):
            subprocess.run([tmp_path / "scripts" / "demo", *given], check=True, capture_output=True)
    first, second = batched((tmp_path / "asked").read_text().splitlines(), 4)
    assert all("experiment=tiny lora.r=16 deployment.port=" in line and "=5001" not in line for line in first)
    assert all(line.count("deployment.port=") == 1 and "deployment.port=5005" in line for line in second)
    assert "stage=all,evaluate" in first[0] and "invoke.stream=true" in first[1]


def batched(lines: list[str], size: int) -> list[list[str]]:
    return [lines[start : start + size] for start in range(0, len(lines), size)]
