"""Digests are remembered for as long as a file provably is what it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftkit import digests
from ftkit.files import sha256


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the files that are read, in order; files count as settled at once."""
    names: list[str] = []

    def reading(path: Path) -> str:
        names.append(path.name)
        return sha256(path)

    monkeypatch.setattr(digests, "sha256", reading)
    monkeypatch.setattr(digests, "SETTLED_S", -60)
    yield names


def test_an_unchanged_file_is_read_once(tmp_path: Path, read: list[str]):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    for _ in range(3):
        assert digests.Digests(tmp_path)([path]) == {path: sha256(path)}
    assert read == ["model.safetensors"]


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path, read: list[str]):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    before, times = digests.Digests(tmp_path)([path]), path.stat()
    path.write_bytes(b"weighty")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digests.Digests(tmp_path)([path]) != before


def test_a_file_in_its_place_with_the_same_times_is_seen(tmp_path: Path, read: list[str]):
    path, other = tmp_path / "model.safetensors", tmp_path / "other"
    path.write_bytes(b"weights")
    other.write_bytes(b"weighty")
    before, times = digests.Digests(tmp_path)([path]), path.stat()
    other.replace(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digests.Digests(tmp_path)([path]) != before


def test_a_file_that_was_changed_a_moment_ago_is_not_remembered(tmp_path: Path):
    """Guard: SETTLED_S. A second change within the file system's clock would bear the same time."""
    path = tmp_path / "config.json"
    path.write_bytes(b"{}")
    digests.Digests(tmp_path)([path])
    assert not (tmp_path / digests.MEMORY).exists()


@pytest.mark.parametrize("damaged", ["", "[", "[1]", '{"a": 5}', '{"a": [1, 2]}', "[" * 100_000, "\0"])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, damaged: str):
    (tmp_path / digests.MEMORY).write_text(damaged)
    (tmp_path / "a").write_text("a")
    assert digests.Digests(tmp_path)([tmp_path / "a"]) == {tmp_path / "a": sha256(tmp_path / "a")}
