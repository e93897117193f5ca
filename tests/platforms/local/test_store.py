"""The store: versions are never replaced, two at once do not mix, and only what is there and right counts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ftkit.errors import StageError
from ftkit.files import copy_tree, tree, tree_digest
from ftkit.locks import locked
from ftkit.platforms.base import Asset
from ftkit.platforms.local import store


def keep(folder: Path, content: Path, said: list[str] | None = None) -> tuple[Asset, bool]:
    wait = [].append if said is None else said.append
    return store.register(
        folder, "models", "m", content, tree_digest(content), type="custom_model", tags={"run": "r"}, wait=wait
    )


@pytest.fixture
def content(tmp_path: Path) -> Path:
    return written(tmp_path / "merged", "weights")


def written(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_text(text)
    (folder / "config.json").write_text("{}")
    return folder


def test_many_at_once_get_a_version_each_and_none_is_replaced(tmp_path: Path):
    """Guard: the lock in store.register."""
    contents = [written(tmp_path / str(i), f"weights {i}") for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        kept = list(threads.map(lambda content: keep(tmp_path / "store", content), contents))
    assert sorted(int(asset.version) for asset, new in kept if new) == list(range(1, 9))
    for content, (asset, _) in zip(contents, kept, strict=True):
        assert store.get(tmp_path / "store", "models", "m", asset.version).digest == tree_digest(content)


def test_the_same_content_is_the_same_version(tmp_path: Path, content: Path):
    assert keep(tmp_path / "store", content)[1]
    assert keep(tmp_path / "store", content)[0].version == "1"


@pytest.mark.parametrize("broken", ["bit", "file gone", "content gone", "description", "description gone", "file more"])
def test_a_version_that_is_broken_does_not_count_and_keeps_its_number(tmp_path: Path, content: Path, broken: str):
    asset, _ = keep(tmp_path / "store", content)
    there = Path(asset.path)
    if broken == "bit":
        (there / "model.safetensors").chmod(0o644)
        (there / "model.safetensors").write_text("weighty")
    elif broken == "file gone":
        (there / "config.json").unlink()
    elif broken == "content gone":
        shutil.rmtree(there)
    elif broken == "description":
        (there.parent / "asset.json").write_text('{"kind": "models", "name": null}')
    elif broken == "description gone":
        (there.parent / "asset.json").unlink()
    else:
        (there / "more.py").write_text("")
    with pytest.raises(StageError) as error:
        store.get(tmp_path / "store", "models", "m", "1")
    assert error.value.cure == "stage=register force=true"
    again, new = keep(tmp_path / "store", content)
    assert new and again.version == "2"
    assert store.get(tmp_path / "store", "models", "m", "2").digest == tree_digest(content)


def test_content_that_changes_while_it_is_copied_is_not_kept(tmp_path: Path, content: Path):
    with pytest.raises(StageError, match="was changed"):
        store.register(tmp_path / "store", "data", "d", content, "0" * 64, type="uri_folder", tags={}, wait=[].append)
    assert not list((tmp_path / "store" / "data" / "d").glob("[0-9]*"))


def test_weights_are_no_copy_and_what_replaces_the_merged_model_leaves_the_version_alone(tmp_path: Path, content: Path):
    asset, _ = keep(tmp_path / "store", content)
    weights, merged = Path(asset.path) / "model.safetensors", content / "model.safetensors"
    assert weights.samefile(merged) or _share_blocks(weights)
    assert not (Path(asset.path) / "config.json").samefile(content / "config.json")
    shutil.rmtree(content)
    written(content, "others")
    assert weights.read_text() == "weights"
    assert store.get(tmp_path / "store", "models", "m", "1") == asset
    assert keep(tmp_path / "store", content)[0].version == "2"


def _share_blocks(path: Path) -> bool:
    """Whether the file system can: then it is a clone."""
    done = subprocess.run(["cp", "--reflink=always", path, path.with_name("clone")], capture_output=True, check=False)
    path.with_name("clone").unlink(missing_ok=True)
    return done.returncode == 0


def test_weights_that_are_written_to_while_they_are_kept_are_not(
    tmp_path: Path, content: Path, monkeypatch: pytest.MonkeyPatch
):
    """Guard: _identity in store._copied."""
    digest = tree_digest(content)

    def written_to_meanwhile(*arguments):
        (content / "model.safetensors").write_text("weightier")
        return copy_tree(*arguments)

    monkeypatch.setattr(store, "copy_tree", written_to_meanwhile)
    with pytest.raises(StageError, match="was changed"):
        store.register(tmp_path / "store", "models", "m", content, digest, type="t", tags={}, wait=[].append)


def test_what_a_killed_command_was_copying_goes_unless_another_is_at_work_there(tmp_path: Path, content: Path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    keep(tmp_path / "store", content)
    left = tmp_path / "store" / "models" / "m" / f".2.{process.pid}.partial"
    written(left, "half")
    with locked(left.parent, "registering m"):
        assert store.remove_left_behind(tmp_path / "store") == []
    assert store.remove_left_behind(tmp_path / "store") == [left]
    assert sorted(tree(left.parent)) == [
        ".lock",
        "1/asset.json",
        "1/content/config.json",
        "1/content/model.safetensors",
    ]
