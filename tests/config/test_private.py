"""What comes from environment variables is used and never written down; the user's YAML ends somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftkit.config import yaml_limits
from ftkit.config.resolve import freeze, load_frozen, resolve
from ftkit.config.stages import BY_NAME
from ftkit.errors import ConfigError
from ftkit.pipeline.stage import settings_of

SECRET = "hf_verysecret"


@pytest.fixture
def local(in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``conf/local/default.yaml`` with values of the environment: whole, within a text, by another key, decoded."""
    monkeypatch.setenv("MY_TOKEN", SECRET)
    monkeypatch.setenv("MY_RANK", "4")
    path = in_empty_folder / "conf" / "local" / "default.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(
        "# @package _global_\n"
        "compute:\n  environment_variables:\n"
        "    HF_TOKEN: ${oc.env:MY_TOKEN}\n"
        "    HEADER: Bearer ${oc.env:MY_TOKEN}\n"
        "    AGAIN: ${compute.environment_variables.HF_TOKEN}\n"
        "    OTHER: ${oc.env:NOT_SET,plain}\n"
        "dataset:\n  persona: ${oc.env:MY_TOKEN}\n"
        "lora:\n  r: ${oc.decode:${oc.env:MY_RANK}}\n"
    )
    return path


def test_secrets_are_used_and_frozen_by_name(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = resolve(["experiment=tiny", "stage=prepare"])
    variables = config.compute.environment_variables
    assert (
        variables.items()
        >= {
            "HF_TOKEN": SECRET,
            "HEADER": f"Bearer {SECRET}",
            "AGAIN": SECRET,
            "OTHER": "plain",
        }.items()
    )
    frozen = tmp_path / "frozen.yaml"
    freeze(config, frozen)
    assert SECRET not in frozen.read_text() and frozen.stat().st_mode & 0o077 == 0
    again = load_frozen(frozen)
    assert again == config and again.lora and again.lora.r == 4
    freeze(again, frozen)
    assert SECRET not in frozen.read_text()
    monkeypatch.delenv("MY_TOKEN")
    with pytest.raises(ConfigError, match="MY_TOKEN, which is not set"):
        load_frozen(frozen)


def test_records_tell_secrets_apart_without_them(local: Path, monkeypatch: pytest.MonkeyPatch):
    one = settings_of(BY_NAME["prepare"], resolve(["experiment=tiny"]))
    monkeypatch.setenv("MY_TOKEN", "another")
    other = settings_of(BY_NAME["prepare"], resolve(["experiment=tiny"]))
    assert SECRET not in str(one) and "${oc.env:MY_TOKEN}" in one["dataset.persona"]
    assert one["dataset.persona"] != other["dataset.persona"]


@pytest.mark.usefixtures("workspace_named")
def test_no_job_is_given_them(local: Path):
    with pytest.raises(ConfigError) as error:
        resolve(["experiment=tiny-azure", "stage=train"])
    keys = {problem.key for problem in error.value.problems}
    assert "compute.environment_variables.HF_TOKEN" in keys and "compute.environment_variables.OTHER" not in keys
    assert not any(key.startswith("workspace") for key in keys)
    assert SECRET not in str(error.value)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (BOMB.encode(), "anchors"),
        (b"a: &a\n  b: *a\n", "nested without an end"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "nested without an end"),
        (b"a: \0", "no text file has"),
        (b"just words", "not keys"),
        (b"- a\n- b\n", "not keys"),
        ("名前: 値".encode("cp932"), "not UTF-8"),
        (b"a" * (1 << 21), "more than 1 MiB"),
        (b"lora: {r: 5", "expected"),
    ],
)
def test_yaml_that_is_none_or_never_ends(in_empty_folder: Path, content: bytes, says: str):
    path = in_empty_folder / "conf" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"# @package _global_\n" + content)
    with pytest.raises(ConfigError, match=says) as error:
        resolve(["experiment=mine", "stage=plan"])
    assert error.value.problems[0].where.rpartition("conf/")[2].startswith("experiment/mine.yaml") or says.endswith(
        "unknown key"
    )


def test_anchors_count_as_often_as_they_are_used(in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Guard: MOST in yaml_limits; a bomb itself would take all memory without it."""
    monkeypatch.setattr(yaml_limits, "MOST", 50)
    path = in_empty_folder / "conf" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# @package _global_\na: &a [x, x, x, x, x, x, x, x]\nb: [*a, *a, *a, *a, *a, *a, *a, *a]\n")
    with pytest.raises(ConfigError, match="holds 85 values, its anchors written out; at most 50"):
        resolve(["experiment=mine", "stage=plan"])


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"text", b"5", b"\xff\xfe\0\1", b"[" * 100_000, b"run: 5", b"run: {name: []}", b"a: &a [*a]"],
)
def test_a_frozen_configuration_that_is_none(tmp_path: Path, content: bytes):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_frozen(path, {"stage": "plan", "run.name": "x"})


def test_a_job_does_not_look_for_rows_that_were_prepared_before_it(tmp_path: Path):
    """Guard: _asked_for before find_files. ``package:`` rows are not among the code that a job gets."""
    freeze(resolve(["experiment=tiny", "stage=train"]), tmp_path / "config.yaml")
    load_frozen(tmp_path / "config.yaml", {"dataset.path": "package:rows-of-another-place.jsonl"})
