"""GGUF: llama.cpp's converter is rehearsed, run and checked; what it wrote is the merged model, and llama.cpp runs it.

The tests marked slow have the real converter and the real engine; scripts stand in for one that fails.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import real_tokenizer
from helpers.llama_cpp import Converter, answers_of_llama_cpp
from helpers.small_model import SHAPE, save_mxfp4_copy, small_config, small_run
from transformers import AutoModelForCausalLM, AutoTokenizer, GptOssForCausalLM, Mxfp4Config

from ftkit.assets import asset_path
from ftkit.config.resolve import resolve
from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.export import gguf
from ftkit.export.merge import DTYPES
from ftkit.models.loading import load_base

QUESTION = "12メートルは何センチメートルですか？"
YARN = {
    "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
"""As the published checkpoints have it."""

STANDS_IN = """
import os, pathlib, signal, sys, time
model = pathlib.Path(sys.argv[1])
out = pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1])
"""


@pytest.fixture
def standing_in(model_folder: Path, tmp_path: Path) -> Callable[[str], Config]:
    """``standing_in("sys.exit(3)")``: the configuration with a converter that does just that."""

    def config(body: str) -> Config:
        script = tmp_path / "llama.cpp" / "convert_hf_to_gguf.py"
        script.parent.mkdir(exist_ok=True)
        script.write_text(STANDS_IN + body)
        return small_run(model_folder, f"merge.gguf={script.parent}")

    return config


def refused(config: Config, merged: Path, folder: Path) -> StageError:
    """The error of a conversion, which is that of the rehearsal too but for what is left; no file is there."""
    with pytest.raises(StageError) as rehearsed:
        gguf.rehearse(config, folder)
    with pytest.raises(StageError) as converted:
        gguf.convert(config, merged, folder / gguf.FILE, parameters=1, folder=folder, say=lambda _: None)
    assert sorted(p.name for p in folder.iterdir() if p.is_file()) == [gguf.LOG]
    rehearsal, error = rehearsed.value, converted.value
    assert rehearsal.what.partition(":")[0] == error.what.partition(":")[0]
    if "disk" not in error.what:
        assert error.cure == f"{rehearsal.cure}; {gguf.LEFT}" and error.where == str(folder / gguf.LOG)
    return error


@pytest.mark.parametrize(
    ("body", "said", "cure"),
    [
        ("sys.exit(\"INFO: a\\n  b\\nusage:\\nerror: argument --outtype: invalid choice: 'bf16'\")",
         "ended with status 1, without its file: INFO: a / error: argument --outtype: invalid choice: 'bf16'",
         "a newer llama.cpp, or merge.gguf=null"),
        ("import no_such_package", "No module named 'no_such_package'",
         "python -m venv {0}/.venv && {0}/.venv/bin/pip install -r {0}/requirements.txt"),
        ("raise NotImplementedError('BPE pre-tokenizer was not recognized')", "NotImplementedError: BPE pre-tokenizer",
         "a base with OpenAI's vocabulary"),
        ("", "ended with status 0, without its file: it said nothing", "a newer llama.cpp"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by signal 9", "a newer llama.cpp"),
        ("out.write_text('GUFF')", "what the converter wrote is not the model: it does not begin as a GGUF", "a newer"),
        ("out.write_bytes(b'GGUF' + bytes([3, 0, 0, 0, 1]))", "it ends within its header", "a newer llama.cpp"),
        ("out.write_text('half'); raise OSError(28, 'No space left on device')", "the disk is full", "run.outputs="),
    ],
)  # fmt: skip
def test_what_a_converter_said_that_failed_is_quoted_with_what_mends_it(
    standing_in: Callable[[str], Config], model_folder: Path, tmp_path: Path, body: str, said: str, cure: str
) -> None:
    """Guards: _failed, _cure, and read_header in _check."""
    error = refused(standing_in(body), model_folder, tmp_path)
    assert said in error.what and cure.format(tmp_path / "llama.cpp") in error.cure, error


def test_the_python_beside_the_script_is_taken_and_a_program_runs_by_itself(
    standing_in: Callable[[str], Config], model_folder: Path, tmp_path: Path
) -> None:
    """Guard: the choice in _command."""
    config = standing_in("sys.exit('by our own')")
    assert "by our own" in refused(config, model_folder, tmp_path).what
    program = "#!/bin/sh\necho by another, $1\nexit 3\n"
    for path in (tmp_path / "llama.cpp" / ".venv" / "bin" / "python", tmp_path / "llama.cpp" / "convert"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(program)
        path.chmod(0o755)
    assert "by another, " + str(tmp_path) in refused(config, model_folder, tmp_path).what
    config = small_run(model_folder, f"merge.gguf={tmp_path}/llama.cpp/convert")
    assert f"by another, {model_folder}" in refused(config, model_folder, tmp_path).what


def test_it_says_how_far_a_long_conversion_is(
    standing_in: Callable[[str], Config], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script ends when it has been heard of. Guard: the loop in _wait."""
    monkeypatch.setattr(gguf, "PROGRESS_S", 0.01)
    heard, said = tmp_path / "heard", []

    def say(line: str) -> None:
        said.append(line)
        if "GiB written" in line:
            heard.touch()

    config = standing_in(f"while not os.path.exists({str(heard)!r}): time.sleep(0.01)")
    with pytest.raises(StageError, match="without its file"):
        gguf.convert(config, model_folder, tmp_path / "x.gguf", parameters=1, folder=tmp_path, say=say)
    assert "converting to GGUF with" in said[0] and said[1] == "GGUF: 0.0 GiB written"


def header(metadata: dict[str, Any], tensors: dict[str, tuple[int, int]]) -> bytes:
    """A GGUF file's first part: unsigned, float and text values; tensors of so many values of a type, none written."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def value(given: Any) -> bytes:
        if isinstance(given, str):
            return struct.pack("<I", 8) + text(given)
        return struct.pack("<If", 6, given) if isinstance(given, float) else struct.pack("<II", 4, given)

    keys = b"".join(text(key) + value(given) for key, given in metadata.items())
    infos = b"".join(text(name) + struct.pack("<IQIQ", 1, count, kind, 0) for name, (count, kind) in tensors.items())
    return b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + keys + infos


SAID = {
    "general.architecture": "gpt-oss", "gpt-oss.block_count": 2, "gpt-oss.embedding_length": 32,
    "gpt-oss.attention.head_count": 2, "gpt-oss.attention.head_count_kv": 1, "gpt-oss.attention.sliding_window": 8,
    "gpt-oss.expert_count": 4, "gpt-oss.expert_used_count": 2, "gpt-oss.rope.freq_base": 10000.0,
}  # fmt: skip
"""Of the small model."""


@pytest.mark.parametrize(
    ("change", "tensors", "said"),
    [
        ({"gpt-oss.rope.freq_base": 150000.0}, {"a": (10, 0)}, "rope.freq_base is 150000.0, and the model's 10000.0"),
        ({"gpt-oss.expert_used_count": 4}, {"a": (10, 0)}, "expert_used_count is 4, and the model's 2"),
        ({"gpt-oss.attention.sliding_window": None}, {"a": (10, 0)}, "sliding_window is missing, and the model's 8"),
        ({"general.architecture": "llama"}, {"a": (10, 0)}, "general.architecture is llama, and the model's gpt-oss"),
        ({}, {"a": (9, 0)}, "it holds 9 parameters, and the model has 10"),
        ({}, {"a": (2, 0), "b": (8, 1)}, "b is stored as F16, not as F32"),
        ({}, {"b": (10, 2)}, "b is stored as type 2, not as F32"),
        ({}, {"a": (10, 0)}, "it ends after"),
    ],
)
def test_a_file_that_is_not_the_model_is_not_kept(
    standing_in: Callable[[str], Config], model_folder: Path, tmp_path: Path, change: dict[str, Any],
    tensors: dict[str, tuple[int, int]], said: str,
) -> None:  # fmt: skip
    """Guards: each line of ``differences`` and ``missing``."""
    metadata = {key: value for key, value in {**SAID, **change}.items() if value is not None}
    config, out = standing_in(f"out.write_bytes({header(metadata, tensors)!r})"), tmp_path / "x.gguf"
    with pytest.raises(StageError, match="what the converter wrote is not the model") as caught:
        gguf.convert(config, model_folder, out, parameters=10, folder=tmp_path, say=lambda _: None)
    assert said in caught.value.what and not out.exists()


def small_with_real_vocabulary(home: Path) -> tuple[Path, list[str]]:
    """A small random gpt-oss with the published one's format, vocabulary and rotary settings, and its overrides."""
    tokenizer = AutoTokenizer.from_pretrained(real_tokenizer.build(real_tokenizer.home()))
    torch.manual_seed(0)
    ids = {"bos_token_id": 199998, "eos_token_id": 200002, "pad_token_id": 199999}
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 131072, "rope_parameters": YARN}
    GptOssForCausalLM(small_config(**shape, **ids)).to(torch.bfloat16).save_pretrained(home / "bf16")
    tokenizer.save_pretrained(home / "bf16")
    own = {**SHAPE, "vocab_size": len(tokenizer)}
    return save_mxfp4_copy(home / "bf16", home / "mxfp4"), [f"model.architecture.{k}={v}" for k, v in own.items()]


def tiny_in(form: str, home: Path) -> Path:
    """The tiny model in one of the formats; it ships in MXFP4."""
    shipped = asset_path("package:tiny-gpt-oss")
    if form == "mxfp4":
        return Path(shipped)
    dense = load_base(resolve(["experiment=tiny"]).model, dtype=DTYPES[form])
    dense.save_pretrained(home / form, save_original_format=False)
    AutoTokenizer.from_pretrained(shipped).save_pretrained(home / form)
    return home / form


def as_transformers_has_it(folder: Path) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The model in float32, and its weights under GGUF's names, experts with outputs before inputs."""
    packed = "quantization_config" in json.loads((folder / "config.json").read_text())
    how: dict[str, Any] = {"quantization_config": Mxfp4Config(dequantize=True)} if packed else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **how)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm", "mlp.router": "ffn_gate_inp",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "self_attn.sinks": "attn_sinks.weight",
    }  # fmt: skip
    weights = {}
    for name, weight in model.state_dict().items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        layer, _, part = name.partition(".mlp.experts.")
        kind = "bias" if part.endswith("_bias") else "weight"
        weight = weight.mT if part and kind == "weight" else weight
        if part.startswith("gate_up_proj"):
            weights[f"{layer}.ffn_gate_exps.{kind}"] = weight[:, ::2]
            weights[f"{layer}.ffn_up_exps.{kind}"] = weight[:, 1::2]
        else:
            weights[f"{layer}.ffn_down_exps.{kind}" if part else name] = weight
    return model, weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "vocabulary"), [("fp32", "tiny"), ("bf16", "tiny"), ("mxfp4", "tiny"), ("mxfp4", "real")]
)
def test_every_weight_arrives_bit_for_bit_and_llama_cpp_answers_as_transformers_does(
    converter: Converter, tmp_path: Path, form: str, vocabulary: str
) -> None:
    """With the real converter, read by the gguf package, and run by llama.cpp. Guard: OUTTYPES."""
    if vocabulary == "real":
        source, shape = small_with_real_vocabulary(tmp_path)
        script, words = converter.folder, "gpt-4o"
    else:
        source, shape, script, words = tiny_in(form, tmp_path), [], converter.for_tiny, "smollm"
    config = resolve(
        ["experiment=tiny", "stage=merge", f"model.pretrained_model_name_or_path={source}", *shape,
         f"merge.format={form}", f"merge.gguf={script}"]
    )  # fmt: skip
    model, weights = as_transformers_has_it(source)
    folder, said = tmp_path / "merge", []
    out = folder / gguf.FILE
    gguf.rehearse(config, folder)
    parameters = sum(weight.numel() for weight in weights.values())
    made = gguf.convert(config, source, out, parameters=parameters, folder=folder, say=said.append)
    assert said[0].startswith("converting to GGUF with") and made["bytes"] == out.stat().st_size
    assert sorted(p.name for p in folder.iterdir()) == [gguf.LOG, out.name]

    tensors, types, metadata = converter.read(out, tmp_path)
    assert tensors.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(torch.from_numpy(tensors[name]), weight), name
    experts = {kind for name, kind in types.items() if name.endswith("_exps.weight")}
    assert experts == {{"fp32": "F32", "bf16": "BF16", "mxfp4": "MXFP4"}[form]}
    assert metadata["general.name"] == "tiny-01-pre" and metadata["tokenizer.ggml.pre"] == words
    assert metadata.get("gpt-oss.rope.scaling.factor") == (32 if vocabulary == "real" else None)
    assert metadata["tokenizer.chat_template"]

    ids: Any = AutoTokenizer.from_pretrained(source)(QUESTION, return_tensors="pt").input_ids
    answer = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
    got = answers_of_llama_cpp(out, [{"text": QUESTION, "tokens": len(answer)}])
    assert got == [{"prompted": ids[0].tolist(), "answer": answer}]
