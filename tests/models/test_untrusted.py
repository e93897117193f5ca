"""Checkpoints of strangers: their code is not run, nothing outside of their folder is read, nothing takes for ever."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftkit.assets import asset_path
from ftkit.chat import template_limits
from ftkit.chat.harmony_render import checked_harmony
from ftkit.chat.template_render import TemplateRenderer
from ftkit.config.groups import Model
from ftkit.config.option_files import PACKAGE
from ftkit.config.resolve import resolve
from ftkit.errors import ConfigError, StageError
from ftkit.models import untrusted
from ftkit.models.loading import load_base, load_tokenizer

CODE = """
from pathlib import Path
Path(__file__).with_name("was-run").touch()
Path("was-run").touch()
from transformers import PretrainedConfig, GptOssConfig
class Mine(GptOssConfig): pass
"""


@pytest.fixture
def folder(in_empty_folder: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(asset_path("package:tiny-gpt-oss"), in_empty_folder / "model"))


def model_of(folder: Path) -> Model:
    return resolve(["experiment=tiny", f"model.pretrained_model_name_or_path={folder}"]).model


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    edit(values)
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_its_code_is_not_run_and_somebody_is_told(
    folder: Path, file: str, known: bool, capsys: pytest.CaptureFixture[str]
):
    """Guard: trust_remote_code=False in loading. transformers would ask, and ``yes`` would answer."""
    (folder / "mine.py").write_text(CODE)

    def edit(values: dict[str, Any]) -> None:
        values["auto_map"] = {"AutoConfig": "mine.Mine", "AutoTokenizer": [None, "mine.Mine"]}
        if not known:
            values["model_type"] = "mine"
            values["tokenizer_class"] = "Mine"

    change(folder / file, edit)
    said = ""
    try:
        load_tokenizer(model_of(folder))
        load_base(model_of(folder))
    except StageError as error:
        said = str(error)
    assert not list(folder.parent.rglob("was-run"))
    assert "code of its own" in said + capsys.readouterr().out


def weight_map(value: object) -> Callable[[Path], None]:
    return lambda folder: _write(folder / "model.safetensors.index.json", json.dumps({"weight_map": value}))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def link_out(folder: Path) -> None:
    _write(folder.parent / "secret", "{}")
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to("../secret")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch was-run'\ntR.")


def pickled_weights(folder: Path) -> None:
    """They would load: what is asked of a checkpoint is that it can be no program."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


HOSTILE: dict[str, Callable[[Path], object]] = {
    "weight above": weight_map({"lm_head.weight": "../outside.safetensors"}),
    "weight anywhere": weight_map({"lm_head.weight": "/etc/passwd"}),
    "weights a list": weight_map(["model.safetensors"]),
    "weight a number": weight_map({"lm_head.weight": 5}),
    "a link out": link_out,
    "a pickle": pickled,
    "weights in a pickle": pickled_weights,
    "config nested": lambda folder: _write(folder / "config.json", "[" * 100_000),
    "config deep": lambda folder: _write(folder / "config.json", '{"a":' * 50_000 + "1" + "}" * 50_000),
    "config a list": lambda folder: _write(folder / "config.json", "[]"),
    "config a text": lambda folder: _write(folder / "config.json", '"gpt_oss"'),
    "config empty": lambda folder: _write(folder / "config.json", ""),
    "config binary": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\0"),
    "type a number": lambda folder: change(folder / "config.json", lambda values: values.update(model_type=5)),
    "heads a text": lambda folder: change(
        folder / "config.json", lambda values: values.update(num_attention_heads="many")
    ),
    "layers a list": lambda folder: change(folder / "config.json", lambda values: values.update(layer_types=5)),
    "weights cut off": lambda folder: (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}"),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_model_that_is_none_is_refused_in_words(folder: Path, hostile: str):
    """Most by the configuration, which reads config.json; the rest where the model is loaded."""
    HOSTILE[hostile](folder)
    with pytest.raises((ConfigError, StageError)):
        load_base(model_of(folder))
    assert not list(folder.parent.rglob("was-run"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", b"[" * 100_000, "is not JSON: nested too deeply"),
        ("config.json", b"\xff", "is not JSON"),
        ("config.json", b"[]", "holds a list, not an object"),
        ("config.json", b" " * (untrusted.LARGEST_JSON + 1), "holds more than 16 MiB"),
        ("model.safetensors.index.json", b'{"weight_map": []}', "weight_map is not an object of names"),
    ],
    ids=["nested", "binary", "a list", "long", "weights a list"],
)
def test_a_file_of_a_model_that_is_none_is_named(folder: Path, name: str, content: bytes, says: str):
    """Guards in untrusted: _json, _check_index. What libraries raise says neither which file nor what is wrong."""
    file = folder / name
    file.write_bytes(content)
    with pytest.raises(StageError, match=says) as error:
        untrusted.check_folder(folder)
    assert error.value.where == str(file)


TOKENIZERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "grows": lambda values: values.update(
        normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
        }
    ),
    "nested": lambda values: values.update(normalizer=json.loads('{"a":' * 500 + "1" + "}" * 500)),
    "no model": lambda values: values.pop("model"),
    "vocabulary a list": lambda values: values["model"].update(vocab=[]),
}


@pytest.mark.parametrize("hostile", TOKENIZERS)
def test_a_tokenizer_that_is_none_is_refused_in_words(folder: Path, hostile: str):
    change(folder / "tokenizer.json", TOKENIZERS[hostile])
    with pytest.raises(StageError):
        load_tokenizer(model_of(folder))


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


TEMPLATES = {
    "loops": LOOPS,
    "power": "{{ 10 ** 10 ** 10 }}",
    "much": "{{ 'a' * 10 ** 12 }}",
    "classes": "{{ messages.__class__.__mro__ }}",
    "division": "{{ 1 / 0 }}",
    "cut off": "{% for",
    "refuses": "{{ raise_exception('no') }}",
    "undefined": "{{ undefined_thing.attribute }}",
    "calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a file": "{% include '/etc/passwd' %}",
    "long": "a" * (template_limits.LARGEST + 1),
}


@pytest.mark.parametrize("harmony", [True, False], ids=["harmony", "template"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_hostile_template_is_refused_in_words_and_in_time(
    folder: Path, template: str, harmony: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(template_limits, "LONGEST_S", 0.5)
    tokenizer = load_tokenizer(model_of(folder))
    tokenizer.chat_template = template
    write = checked_harmony if harmony else TemplateRenderer
    with pytest.raises(StageError, match="template"):
        write(tokenizer, current_date="2026-01-01")


@pytest.mark.parametrize(
    ("template", "says"),
    [("{{ 10 ** 10 ** 10 }}", "calculates a power"), ("a" * (template_limits.LARGEST + 1), "more than 1,048,576")],
    ids=["power", "long"],
)
def test_a_template_is_looked_at_before_it_runs(template: str, says: str):
    """Guards in check_template; where Python takes no signals, nothing else would end it."""
    with pytest.raises(StageError, match=says):
        template_limits.check_template(template, "model", "cure")


@pytest.mark.parametrize("path", ["~nobody-of-this-name/rows", "a/" * 3000])
def test_what_cannot_be_a_path(path: str):
    model = model_of(Path("package:tiny-gpt-oss")).model_copy(update={"pretrained_model_name_or_path": path})
    with pytest.raises(StageError, match="is no path"):
        load_tokenizer(model)


def test_every_call_that_could_run_a_checkpoints_code_says_no():
    calls = re.compile(r"(?:Auto\w+|Tokenizer)\.from_(?:pretrained|config)\((?:[^()]|\([^()]*\))*\)")
    found = {p: calls.findall(p.read_text(encoding="utf-8")) for p in PACKAGE.rglob("*.py")}
    said = [call for those in found.values() for call in those]
    assert len(said) >= 7
    assert [c for c in said if "trust_remote_code=False" not in c and "**options" not in c] == []
