"""Nothing is paid twice: lost answers, failed fetches and left jobs lead to no second job; all jobs are found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from azure.ai.ml._utils._asset_utils import get_ignore_file, get_upload_files_from_folder
from quick import Fault, Service
from quick.user import User, fails

from ftkit.config.option_files import PACKAGE
from ftkit.errors import Interrupted, StageError
from ftkit.platforms.azureml import submission

pytestmark = pytest.mark.filterwarnings("ignore")


def detached(of: User, **changed: object) -> None:
    """Submit, and Ctrl-C while the job is followed."""
    actor = of.starts(lambda: of.train(**changed))
    while not of.service.jobs:
        actor.step()
    actor.step()
    actor.interrupt()
    actor.finish()
    assert isinstance(actor.error, Interrupted) and "goes on" in str(actor.error)


@pytest.mark.parametrize("kind", ["lost", "cut", "refused"])
def test_an_answer_that_is_lost_is_followed_by_a_look_and_never_by_a_second_job(service: Service, user, kind: str):
    ann = user()
    service.faults.append(Fault("jobs.create_or_update", kind))
    if kind == "lost":
        ann.train()
        assert ann.heard("the answer was lost")
    else:
        fails(ann.train)
        ann.train()
    assert len(service.jobs) == 1 and service.trained.total() == 1


def test_where_not_even_the_look_succeeds_the_next_command_finds_the_job(service: Service, user):
    ann = user()
    service.faults += [Fault("jobs.create_or_update", "lost"), look := Fault("jobs.get", "refused", times=0)]
    actor = ann.starts(ann.train)
    while not service.jobs:
        actor.step()
    look.times = -1
    actor.finish()
    assert isinstance(actor.error, StageError) and "could not be seen" in actor.error.what
    assert "stage=teardown cancels" in actor.error.cure
    service.faults.clear()
    assert ann.running()
    ann.train()
    assert len(service.jobs) == 1 and service.trained.total() == 1


@pytest.mark.parametrize("call", ["datastores.get_default", "blobs.list", "blobs.read"])
@pytest.mark.parametrize("kind", ["refused", "cut", "forbidden"])
def test_a_job_that_has_completed_is_fetched_however_often_that_fails(service: Service, user, call: str, kind: str):
    ann = user()
    actor = ann.starts(ann.train)
    while not service.jobs:
        actor.step()
    service.faults.append(Fault(call, kind, times=3))
    actor.finish()
    for error in (actor.error, fails(ann.train), fails(ann.train)):
        assert isinstance(error, StageError) and "has completed, and what it wrote could not be fetched" in error.what
        assert "the same command fetches it; nothing is trained again" in error.cure
    ann.train()
    assert (ann.folder / "train" / "record.json").is_file()
    assert len(service.jobs) == 1 and service.trained.total() == 1


def test_force_after_a_failed_fetch_fetches_first_and_trains_the_next_time(service: Service, user):
    ann = user()
    ann.train(force=True)
    assert len(service.jobs) == 1
    actor = ann.starts(lambda: ann.train(force=True))
    while len(service.jobs) < 2:
        actor.step()
    service.faults.append(Fault("blobs.read", "cut"))
    actor.finish()
    assert isinstance(actor.error, StageError)
    ann.train(force=True)
    assert len(service.jobs) == 2, "what was paid for is fetched first"
    ann.train(force=True)
    assert len(service.jobs) == 3


def test_a_detached_job_that_has_completed_is_fetched_without_a_machine(service: Service, user):
    ann = user()
    detached(ann)
    service.pass_time(10_000)
    ann.train()
    assert len(service.jobs) == 1 and ann.heard("has completed: fetching what it wrote")


def test_the_same_work_from_another_machine_or_person_is_one_job(service: Service, user):
    ann, elsewhere = user("ann"), user("bob")
    detached(ann)
    elsewhere.train()
    assert len(service.jobs) == 1 and elsewhere.heard("(submitted by ann@example.com)")
    user("carl").train()
    assert len(service.jobs) == 1


def test_two_who_ask_at_once_get_one_job(service: Service, user):
    ann, bob = user("ann"), user("bob")
    actors = [each.starts(each.train) for each in (ann, bob)]
    while not all(actor.ended for actor in actors):
        for actor in actors:
            actor.step()
    assert [actor.error for actor in actors] == [None, None]
    assert len(service.jobs) == 1 and service.trained.total() == 1


def test_a_failed_job_is_gone_on_from_in_its_place(service: Service, user):
    ann = user()
    service.faults.append(Fault("jobs.run", "failed"))
    fails(ann.train)
    ann.train()
    first, second = service.jobs.values()
    assert first.name != second.name and first.tags["ftkit-store"] == second.tags["ftkit-store"]


def test_teardown_finds_a_job_by_its_tag_from_another_machine_and_leaves_others_jobs(service: Service, user, tmp_path):
    ann, bob = user("ann"), user("bob")
    detached(ann)
    (job,) = service.jobs.values()
    assert bob.running() == [] and "nothing to do" in bob.teardown()
    assert bob.heard("submitted by ann@example.com") and bob.heard("left as it is")
    elsewhere = User(service, "ann", tmp_path / "laptop")
    assert "stopped job" in elsewhere.teardown()
    assert job.status == "Canceled"


def test_a_plan_finds_a_job_by_its_tag_from_another_machine(service: Service, user, tmp_path):
    detached(user("ann"))
    (job,) = service.jobs.values()
    for who, at in (("ann", "laptop"), ("bob", "bob")):
        (seen,) = [found for found in User(service, who, tmp_path / at).platform().preflight() if found.what == "jobs"]
        assert f"{job.name} (train, Queued, by ann@example.com)" in seen.found


def test_a_cancelled_job_whose_cancel_answer_is_lost_is_cancelled(service: Service, user):
    ann = user()
    detached(ann)
    service.faults.append(Fault("jobs.begin_cancel", "lost"))
    ann.teardown()
    assert not service.under_way()


@pytest.mark.parametrize("name", ["../../outside", "a/../../../outside", "..", "x\\..\\..\\y", "/etc/outside", "a//b"])
def test_no_name_in_the_store_leads_out_of_the_runs_folder(service: Service, user, tmp_path: Path, name: str):
    ann = user()
    detached(ann)
    service.pass_time(10_000)
    (job,) = service.jobs.values()
    service.blobs[f"{job.tags['ftkit-store'].partition('/paths/')[2]}/jp/train/{name}"] = b"outside"
    before = set(tmp_path.rglob("*"))
    assert "outside of the run's folder" in fails(ann.train).what
    assert not [
        path for path in set(tmp_path.rglob("*")) - before if path.is_file() and path.read_bytes() == b"outside"
    ]


@pytest.mark.parametrize("stage", ["../../x", "merge", ""])
def test_a_record_lies_where_its_stage_says(service: Service, user, stage: str):
    ann = user()
    detached(ann)
    service.pass_time(10_000)
    (path,) = [path for path in service.blobs if path.endswith("train/record.json")]
    service.blobs[path] = json.dumps({**json.loads(service.blobs[path]), "stage": stage}).encode()
    assert "train/record.json of job jp-" in (what := fails(ann.train).what) and "is no record of that stage" in what


def test_a_job_gets_every_module_of_the_package(user):
    with submission.snapshot(user().config()) as code:
        sent = {path.relative_to(code / "ftkit") for path in (code / "ftkit").rglob("*.py")}
    assert sent == {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}


@pytest.mark.parametrize("ignore", [".gitignore", ".amlignore"])
def test_no_ignore_file_drops_a_part_of_a_users_model(user, tmp_path: Path, ignore: str):
    model = tmp_path / "blobs" / "base"
    (model / "original").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "chat_template.jinja", "original/weights.bin"):
        (model / name).write_text(name)
    (model / ignore).write_text("*\n")
    (tmp_path / "linked").symlink_to(model)
    ann = user()
    config = ann.config()
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"pretrained_model_name_or_path": str(tmp_path / "linked")})}
    )
    with submission.whole_model(config, ann.said.append) as staged:
        found = get_upload_files_from_folder(staged, ignore_file=get_ignore_file(staged))
        assert Path(staged).name == "base"
        assert sorted(name for _, name in found) == [
            "chat_template.jinja", "config.json", "model.safetensors", "original/weights.bin",
        ]  # fmt: skip
        assert all(Path(path).read_text() == name for path, name in found)
    assert ann.heard(f"all is sent but {ignore}")
