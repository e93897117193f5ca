"""Mistakes in the configuration: all shown at once, with key, place, nearest name and cure; nothing is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftkit.config.resolve import resolve
from ftkit.errors import ConfigError, Problem


def problems(*arguments: str) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as error:
        resolve(arguments)
    return {problem.key: problem for problem in error.value.problems}


@pytest.mark.usefixtures("workspace_named")
def test_all_problems_come_at_once_in_the_order_typed():
    found = problems("stage=train", "compute=h100x2", "sft.pakcing=false", "lora.r=zero", "model=tyny", "+new.key=1")
    assert list(found) == ["model", "sft.pakcing", "lora.r", "new.key"]
    assert found["sft.pakcing"].cure == "did you mean sft.packing?"
    assert found["lora.r"].what == "'zero' is not an integer"
    assert "lora.r=8" in found["lora.r"].cure
    assert "did you mean model=tiny?" in found["model"].cure
    assert all(problem.where == "on the command line" for problem in found.values())


@pytest.mark.parametrize(
    ("argument", "key", "says"),
    [
        ("+new.key=1", "new.key", "unknown key"),
        ("++sft.nothing=1", "sft.nothing", "unknown key"),
        ("sft.packing=maybe", "sft.packing", "true or false"),
        ("sft.lr_scheduler_type=cosin", "sft.lr_scheduler_type", "one of cosine_with_min_lr"),
        ("lora.r=0", "lora.r", "greater than 0"),
        ("dataset.current_date=yesterday", "dataset.current_date", "a date"),
        ("run.name=a/b", "run.name", "a name"),
        ("deployment.endpoint_name=x", "deployment.endpoint_name", "3 to 32"),
        ("deployment.request_timeout_ms=200000", "deployment.request_timeout_ms", "180000"),
        ("sft=fast", "sft", "no option 'fast'"),
        ("stage=trian", "stage", "no stage 'trian'"),
        ("lora.r=4,8", "lora.r", "several values"),
        ("plna", "plna", "not of the form key=value"),
    ],
)
def test_one_mistake_is_named(argument: str, key: str, says: str):
    found = problems(argument, *([] if argument.startswith("stage") else ["stage=plan"]))
    assert says in found[key].what


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("sft.max_seq_length=1", "sft.max_length"),
        ("lora.rank=4", "lora.r"),
        ("sft.lr=1", "sft.learning_rate"),
        ("num_nodes=2", "compute.nodes"),
        ("deployment.identity=x", "deployment.user_assigned_identities"),
        ("deployment.scale_settings=x", "deployment.autoscale.max_instances"),
        ("sft.leraning_rate=1", "sft.learning_rate"),
        ("packing=false", "sft.packing"),
    ],
)
def test_names_of_other_kits_and_typos_lead_to_the_key(typed: str, meant: str):
    assert meant in problems(typed, "stage=plan")[typed.partition("=")[0]].cure


def test_the_nearest_of_a_key_s_values_is_named():
    assert problems("model.dtype=bfloat", "stage=plan")["model.dtype"].cure == "did you mean model.dtype=bfloat16?"


def test_an_option_of_the_user_s_own_that_lacks_keys_is_told_where_to_take_them_from(in_empty_folder: Path):
    """A group's own files begin with ``defaults``; it is easily forgotten."""
    folder = in_empty_folder / "conf" / "sft"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("packing: true\n")
    problem = problems("sft=mine", "stage=plan")["sft"]
    assert "of its keys are missing, sft.max_length first" in problem.what
    assert problem.where == "conf/sft/mine.yaml" and "defaults: [default, _self_]" in problem.cure


def test_japanese_needs_no_extra_quotes():
    config = resolve(["experiment=tiny", "stage=invoke", "invoke.prompt=オーストラリアの首都は、どこ？"])
    assert config.invoke.prompt == "オーストラリアの首都は、どこ？"


def test_stages_as_a_list_come_in_the_order_of_the_life_cycle():
    assert resolve(["experiment=tiny", "stage=train,prepare"]).stages == ("prepare", "train")
    assert resolve(["experiment=tiny", "stage=[merge,train]"]).stages == ("train", "merge")
    assert len(resolve(["experiment=tiny", "stage=all"]).stages) == 8
    gated = resolve(["experiment=tiny", "stage=all", 'registration.gate=["parses >= base"]']).stages
    assert gated[4:7] == ("merge", "evaluate", "register") and len(gated) == 9
    assert resolve(["experiment=tiny", "stage=all,evaluate"]).stages == gated


@pytest.mark.usefixtures("workspace_named")
def test_the_command_line_prints_problems_without_a_traceback(ftkit):
    done = ftkit("stage=train", "compute=h100x2", "sft.pakcing=false", "lora.r=zero")
    assert done.status == 2
    assert done.err.startswith("2 problems in the configuration; nothing was started.")
    assert "Traceback" not in done.err and done.out == ""


def test_a_sweep_is_checked_whole_before_its_first_run(ftkit, tmp_path: Path):
    done = ftkit("experiment=tiny", "stage=train", "lora.r=4,none", "-m")
    assert done.status == 2 and "'none' is not an integer" in done.err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stage=train"], "stage=train asks Azure, and SUBSCRIPTION_ID, WORKSPACE_NAME are not set"),
        (["stage=prepare,deploy"], "stage=deploy asks Azure"),
        (["stage=plan", "check=true"], "stage=plan check=true asks Azure"),
    ],
)
def test_a_workspace_without_a_name_is_told_before_anything_starts(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
):
    """Guard: checks.workspace_is_named."""
    for name in ("SUBSCRIPTION_ID", "WORKSPACE_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RESOURCE_GROUP", "rg")
    problem = problems(*arguments)["workspace"]
    assert says in problem.what
    assert "export SUBSCRIPTION_ID=…" in problem.cure and "conf/local/default.yaml" in problem.cure


@pytest.mark.parametrize("argument", ["stage=plan", "stage=prepare", "experiment=tiny"])
def test_what_does_not_ask_azure_needs_no_workspace(argument: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("SUBSCRIPTION_ID", "RESOURCE_GROUP", "WORKSPACE_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert resolve([argument, "stage=plan"] if argument.startswith("experiment") else [argument])
