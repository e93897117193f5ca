"""stage=clean: what is on the disk, what is removed, and what must stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from helpers.command import FinishedRun, run_ftkit

from ftkit.files import tree, tree_digest
from ftkit.locks import locked
from ftkit.platforms.local import store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two trained runs with checkpoints, one that is not finished, and two versions of a model that no run needs."""
    for name in ("first", "second", "unfinished"):
        run = tmp_path / "outputs" / name
        (run / "checkpoints" / "a" / "checkpoint-1").mkdir(parents=True)
        (run / "checkpoints" / "a" / "checkpoint-1" / "optimizer.pt").write_bytes(bytes(2 << 20))
        (run / "train").mkdir()
        (run / "train" / "adapter.safetensors").write_bytes(bytes(1 << 20))
        settings(run, name)
        if name != "unfinished":
            (run / "train" / "record.json").write_text("{}")
    for content in ("one", "two"):
        keep_version(tmp_path, content)
    return tmp_path


def settings(run: Path, name: str, **more: object) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({"run": {"name": name, "base": None}, **more}))


def keep_version(folder: Path, content: str) -> str:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "weights").write_text(content)
    asset, _ = store.register(
        folder / "outputs" / "_workspace",
        "models",
        "m",
        model,
        tree_digest(model),
        type="custom_model",
        tags={},
        wait=print,
    )
    return asset.id


def clean(folder: Path, *asked: str):
    return run_ftkit("experiment=tiny", "stage=clean", *asked, cwd=folder)


def test_lists_what_takes_space_and_removes_nothing(folder: Path):
    before = tree(folder / "outputs")
    done = clean(folder)
    assert done.status == 0, done
    (first,) = (line for line in done.out.splitlines() if "run first" in line)
    assert "3.0 MiB" in first and "2.0 MiB" in first
    assert "model m:1" in done.out and "model m:2" in done.out
    assert "clean.checkpoints=true frees 4.0 MiB" in done.out
    assert {name for name in tree(folder / "outputs") if not name.endswith(".lock")} == {
        name for name in before if not name.endswith(".lock")
    }


def test_checkpoints_of_finished_trainings_go_and_those_of_others_stay(folder: Path):
    done = clean(folder, "clean.checkpoints=true", "yes=true")
    assert done.status == 0 and "freed 4.0 MiB" in done.out, done
    left = [path.parent.name for path in sorted((folder / "outputs").glob("*/checkpoints"))]
    assert left == ["unfinished"]
    assert (folder / "outputs" / "first" / "train" / "adapter.safetensors").is_file()


def test_asks_before_it_removes(folder: Path):
    done = clean(folder, "clean.runs=[first]")
    assert done.status == 1 and "yes=true" in done.err
    assert (folder / "outputs" / "first").is_dir()


def test_removes_runs_and_names_what_is_not_there(folder: Path):
    done = clean(folder, "clean.runs=[frist]", "yes=true")
    assert done.status == 1 and "clean.runs=[first]" in done.err
    assert clean(folder, "clean.runs=first,second", "yes=true").status == 0
    assert not (folder / "outputs" / "first").exists() and not (folder / "outputs" / "second").exists()
    assert (folder / "outputs" / "unfinished").is_dir()


def test_a_number_of_a_removed_version_is_not_given_again(folder: Path):
    done = clean(folder, "clean.versions=unused", "yes=true")
    assert done.status == 0, done
    assert not any((folder / "outputs" / "_workspace" / "models" / "m" / "2").iterdir())
    assert "model m:" not in clean(folder).out
    assert keep_version(folder, "two") == "m:3"


@pytest.mark.parametrize("why", ["base", "path", "link", "job", "at work"])
def test_what_another_needs_stays(folder: Path, why: str):
    first, second = folder / "outputs" / "first", folder / "outputs" / "second"
    if why == "base":
        (second / "config.yaml").write_text(yaml.safe_dump({"run": {"name": "second", "base": "first"}}))
    elif why == "path":
        settings(second, "second", model={"pretrained_model_name_or_path": "outputs/first/merged"})
    elif why == "link":
        (second / "adapter").symlink_to(first / "train")
    elif why == "job":
        (first / "azureml").mkdir()
        (first / "azureml" / "job.json").write_text(json.dumps({"name": "j", "status": "Running", "stages": ["train"]}))
    if why == "at work":
        with locked(first, "stage=train"):
            done = clean(folder, "clean.runs=[first]", "yes=true")
    else:
        done = clean(folder, "clean.runs=[first]", "yes=true")
    assert done.status == 1 and "still needed" in done.err, done
    assert (first / "train" / "adapter.safetensors").is_file()
    if why in ("base", "path", "link"):
        assert "run second" in done.err
        assert clean(folder, "clean.runs=[first,second]", "yes=true").status == 0
        assert not first.exists()


def test_the_version_and_the_rows_of_a_run_stay(copied_run: FinishedRun):
    done = copied_run.ftkit("stage=clean", "clean.versions=unused", "clean.checkpoints=true", "yes=true")
    assert done.status == 0 and "model tiny-01-pre:1" in done.out, done
    refused = copied_run.ftkit("stage=clean", "clean.versions=[tiny-01-pre:1]", "yes=true")
    assert refused.status == 1 and "run tiny needs it" in refused.err
    again = copied_run.ftkit("stage=publish,train,merge,register")
    assert again.status == 0, again
