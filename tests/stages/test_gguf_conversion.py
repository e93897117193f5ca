"""stage=merge with merge.gguf, on the command line: the tiny model's life cycle and llama.cpp's real converter."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.command import FinishedRun
from helpers.llama_cpp import Converter, answers_of_llama_cpp
from transformers import AutoTokenizer

QUESTION = "12メートルは何センチメートルですか？"


def merged_at(run: FinishedRun) -> int:
    return (run.outputs / "merged" / "model.safetensors").stat().st_mtime_ns


@pytest.fixture
def fails(copied_run: FinishedRun) -> Path:
    """Stands for a converter that fails."""
    script = copied_run.folder / "convert_hf_to_gguf.py"
    script.write_text("import sys\nsys.exit('error: not today')\n")
    return script


def test_a_conversion_that_failed_leaves_the_merged_model_which_is_not_merged_again(
    copied_run: FinishedRun, fails: Path
) -> None:
    """Guards: _passed and _digest in stages.merge, and convert, which takes an earlier file away."""
    out, record = copied_run.outputs / "merged.gguf", copied_run.outputs / "merge" / "record.json"
    before, merged = json.loads(record.read_text()), merged_at(copied_run)
    out.write_text("of an earlier conversion")
    failed = copied_run.ftkit("stage=merge", f"merge.gguf={fails}")
    assert failed.status == 1 and "Traceback" not in failed.err
    assert "status 1, without its file: error: not today" in failed.err, failed
    assert "merged/ has passed and stays; the same command tries the conversion alone again" in failed.err
    assert "it is not merged again" in failed.out and not out.exists() and not record.exists()
    done = copied_run.ftkit("stage=merge,register")
    assert "it is not merged again" in done.out and "register     up to date" in done.out
    after = json.loads(record.read_text())
    assert merged_at(copied_run) == merged and after["result"] == before["result"] and after["files"] == before["files"]


@pytest.mark.slow
def test_force_merges_again_when_the_rehearsal_is_over(copied_run: FinishedRun, fails: Path) -> None:
    """Guards: config.force in stages.merge, and rehearse before the merge."""
    before = merged_at(copied_run)
    failed = copied_run.ftkit("stage=merge", f"merge.gguf={fails}", "force=true")
    assert failed.status == 1 and "not today" in failed.err and "it is not merged again" not in failed.out
    assert merged_at(copied_run) == before
    done = copied_run.ftkit("stage=merge", "force=true")
    assert done.status == 0 and merged_at(copied_run) > before


def test_a_merged_model_that_was_changed_is_merged_again(copied_run: FinishedRun) -> None:
    """Guard: the sizes in _passed."""
    (copied_run.outputs / "merge" / "record.json").unlink()
    config, before = copied_run.outputs / "merged" / "config.json", merged_at(copied_run)
    config.write_text(config.read_text() + " ")
    done = copied_run.ftkit("stage=merge")
    assert done.status == 0 and "not merged again" not in done.out and merged_at(copied_run) > before


def test_sigterm_ends_the_converter_and_leaves_the_merged_model(copied_run: FinishedRun) -> None:
    """Guard: passing_on_sigterm in training.gguf."""
    script, started = copied_run.folder / "convert_hf_to_gguf.py", copied_run.folder / "started"
    begins = f"import os, pathlib, signal, sys\npathlib.Path({str(started)!r}).write_text(str(os.getpid()))\n"
    script.write_text(begins + "pathlib.Path(sys.argv[3]).write_text('half')\nsignal.pause()\n")
    command = [sys.executable, "-m", "ftkit", "experiment=tiny", "stage=merge", f"merge.gguf={script}"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=copied_run.folder, **streams)
    while not (started.is_file() and started.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in out, out
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert (copied_run.outputs / "merged" / "config.json").is_file()
    assert not [path for path in copied_run.outputs.iterdir() if "gguf" in path.name]


@pytest.mark.slow
def test_the_tiny_model_is_refused_for_its_vocabulary_before_it_is_loaded(
    copied_run: FinishedRun, converter: Converter
) -> None:
    """Guard: rehearse in stages.merge."""
    refused = copied_run.ftkit("stage=merge", f"merge.gguf={converter.folder}", "merge.format=bf16")
    assert refused.status == 1 and "BPE pre-tokenizer was not recognized" in refused.err
    assert "the tiny model has one of its own" in refused.err and "converting" not in refused.out
    record = json.loads((copied_run.outputs / "merged" / "config.json").read_text())
    assert record["dtype"] == "float32"


@pytest.mark.slow
def test_merge_writes_a_file_that_llama_cpp_answers_from_in_japanese(
    copied_run: FinishedRun, converter: Converter
) -> None:
    """Merged anew in MXFP4, converted, recorded, skipped, and run by llama.cpp to the end of its answer."""
    arguments = ("merge.format=mxfp4", "merge.keep=0", f"merge.gguf={converter.for_tiny}")
    assert "merged/, merged.gguf" in copied_run.ftkit("stage=plan", *arguments).out
    out = copied_run.outputs / "merged.gguf"
    done = copied_run.ftkit("stage=merge", *arguments)
    assert done.status == 0 and f"MiB in outputs/tiny/{out.name}; read back" in done.out, done
    record = json.loads((copied_run.outputs / "merge" / "record.json").read_text())
    content = out.read_bytes()
    said = {"file": "merged.gguf", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert record["result"]["gguf"] == said and record["files"]["merged.gguf"] == len(content)
    assert "up to date" in copied_run.ftkit("stage=merge", *arguments).out
    out.unlink()
    again = copied_run.ftkit("stage=merge", *arguments)
    assert "merged.gguf is gone" in again.out and "it is not merged again" in again.out and out.is_file()

    tokenizer = AutoTokenizer.from_pretrained(copied_run.outputs / "merged")
    system = json.loads((copied_run.outputs / "merged" / "ftkit.json").read_text())["system"]
    chat = [{"role": "system", "content": system}, {"role": "user", "content": QUESTION}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    (got,) = answers_of_llama_cpp(out, [{"text": text, "tokens": 45}])
    assert got["prompted"] == tokenizer(text).input_ids
    thinking, _, answer = tokenizer.decode(got["answer"]).partition("<|end|>")
    assert thinking.startswith("<|channel|>analysis<|message|>1メートルは100センチメートルです。"), got
    assert (
        answer.startswith("<|start|>assistant<|channel|>final<|message|>")
        and "センチメートルです。<|return|>" in answer
    )


@pytest.mark.slow
def test_a_new_merge_takes_the_file_of_the_earlier_one_away(copied_run: FinishedRun, converter: Converter) -> None:
    """Guard: ``converted.unlink`` in stages.merge."""
    assert copied_run.ftkit("stage=merge", f"merge.gguf={converter.for_tiny}").status == 0
    assert (copied_run.outputs / "merged.gguf").is_file()
    assert copied_run.ftkit("stage=merge", "merge.format=bf16").status == 0
    assert not (copied_run.outputs / "merged.gguf").exists()
