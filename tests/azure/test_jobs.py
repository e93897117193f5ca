"""Jobs that are followed, left, taken up, evicted, cancelled and failed; and the hub's token inside them."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import read_until
from project import Project
from standin import StandIn
from standin.faults import FOREVER

from ftkit.assets import asset_path

pytestmark = pytest.mark.slow

ONE_NODE = ("compute.nodes=1", "sft.eval_strategy=no", "sft.per_device_train_batch_size=2")
SHORT = (*ONE_NODE, "sft.max_steps=6", "sft.save_steps=2", "run.base=tiny-azure")
CHECKPOINT = "*/checkpoints/*/checkpoint-{}/complete.json"


@pytest.fixture(scope="module")
def folder(azure: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows prepared and published once; every test has a run of its own that builds on them."""
    folder = tmp_path_factory.mktemp("jobs")
    done = Project(folder, azure).ftkit("stage=prepare,publish")
    assert done.status == 0, str(done)
    return folder


@pytest.fixture
def project(azure: StandIn, folder: Path, request: pytest.FixtureRequest) -> Iterator[Project]:
    name = request.node.name.removeprefix("test_").replace("_", "-")[:40]
    yield Project(folder, azure, name, *SHORT)
    assert azure.costing() == [], "left running"


def jobs_of(azure: StandIn, project: Project) -> list:
    return [job for job in azure.jobs if job.name.startswith(f"{project.name}-")]


def test_ctrl_c_leaves_the_job_running_and_the_same_command_follows_it(azure: StandIn, project: Project):
    process = project.started("stage=train", "sft.max_steps=30")
    read_until(process, "step  2/30")
    (job,) = jobs_of(azure, project)
    job.pause()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert f"job {job.name} goes on" in err and f"attach={job.name}" in err and "stage=teardown" in err
    assert not job.ended.is_set()

    following = project.started("stage=train", "sft.max_steps=30")
    read_until(following, f"job {job.name} is under way: following it")
    job.go_on()
    out, err = following.communicate(timeout=120)
    assert following.returncode == 0, out + err
    assert len(jobs_of(azure, project)) == 1


def test_another_machine_attaches_by_name(azure: StandIn, project: Project, tmp_path: Path):
    process = project.started("stage=train", "sft.max_steps=30")
    read_until(process, "step  1/30")
    (job,) = jobs_of(azure, project)
    job.pause()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

    elsewhere = Project(tmp_path, azure, project.name, *ONE_NODE, "sft.max_steps=30", "sft.save_steps=2")
    assert elsewhere.ftkit("stage=prepare,publish").status == 0
    wrong = elsewhere.ftkit("stage=train,merge", f"attach={job.name}")
    assert wrong.status == 1 and f"job {job.name} runs train" in wrong.err
    missing = elsewhere.ftkit("stage=train", "attach=nobody")
    assert missing.status == 1 and "there is no job nobody" in missing.err
    job.go_on()
    done = elsewhere.ftkit("stage=train", f"attach={job.name}")
    assert done.status == 0, str(done)
    assert elsewhere.record("train")["result"]["job"] == job.name


def test_an_evicted_spot_job_goes_on_from_its_checkpoint(azure: StandIn, project: Project):
    azure.faults.job_evicted(once_written=CHECKPOINT.format(4))
    done = project.ftkit("stage=train", "compute.spot=true", "compute.nodes=2", "sft.max_steps=12")
    assert done.status == 0, str(done)
    (job,) = jobs_of(azure, project)
    assert job.attempts == 2
    assert project.record("train")["result"]["resumed_from"] >= 4


def test_a_cancelled_job_is_said_to_be_and_the_next_one_takes_its_checkpoint(azure: StandIn, project: Project):
    process = project.started("stage=train", "sft.max_steps=30")
    read_until(process, "step  5/30")
    (job,) = jobs_of(azure, project)
    job.pause()
    job.cancelled.set()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and f"job {job.name} (train) was cancelled" in err

    done = project.ftkit("stage=train", "sft.max_steps=30")
    assert done.status == 0, str(done)
    assert "goes on from where the last one ended" in done.out
    assert project.record("train")["result"]["resumed_from"] >= 2


def test_a_failure_of_the_service_is_told_in_its_words_and_the_same_command_completes(azure: StandIn, project: Project):
    azure.faults.job_fails("The node ran out of disk.")
    failed = project.ftkit("stage=train")
    assert failed.status == 1 and "failed: The node ran out of disk." in failed.err
    assert "https://ml.azure.com/runs/" in failed.err and "Traceback" not in failed.err
    done = project.ftkit("stage=train")
    assert done.status == 0, str(done)


def test_a_failure_in_the_job_shows_its_own_error(azure: StandIn, project: Project):
    failed = project.ftkit("stage=train", "sft.max_length=16", "dataset.overlength=error")
    assert failed.status == 1
    assert "(train) failed: " in failed.err and "longer than sft.max_length=16" in failed.err


def test_a_failed_image_build_is_told(azure: StandIn, project: Project):
    azure.faults.build_fails("ERROR: No matching distribution found for torch==99.0")
    azure.images.clear()
    failed = project.ftkit("stage=environment", "environment.wait=true")
    assert failed.status == 1
    assert "could not be built" in failed.err and "torch==99.0" in failed.err
    done = project.ftkit("stage=environment", "environment.wait=true")
    assert done.status == 0 and "Step 1/" in done.out


def test_a_build_is_followed_through_what_passes_and_given_up_in_words(azure: StandIn, project: Project):
    azure.images.clear()
    build = ("stage=environment", "environment.wait=true")
    forever = azure.faults.forbidden("POST", "/environment/.*/image$")
    refused = project.ftkit(*build)
    assert refused.status == 1 and "Traceback" not in refused.err
    assert "cannot build the image of ftkit-train:" in refused.err and "not allowed" in refused.err
    assert forever.met
    azure.faults.clear()
    passing = azure.faults.unavailable("GET", "/environment/.*/builds/", times=1)
    done = project.ftkit(*build)
    assert done.status == 0 and "Step 1/" in done.out and passing.met == 1


def test_the_hubs_token_comes_from_the_vault_into_the_process_alone(azure: StandIn, project: Project):
    azure.workspace.secrets["HF-TOKEN"] = "hf_very_secret"
    done = project.ftkit("stage=train", "secrets.hf_token=HF-TOKEN")
    assert done.status == 0, str(done)
    assert [read.status for read in azure.record.to("GET", "/secrets/HF-TOKEN")][-1] == 200
    (job,) = jobs_of(azure, project)
    logs = "".join(path.read_text() for path in job.folder.rglob("std_log*"))
    for text in (done.out, done.err, project.all_text(), logs):
        assert "hf_very_secret" not in text
    assert azure.record.holding("hf_very_secret") == []


def test_the_hubs_token_may_come_from_a_connection_of_the_workspace(azure: StandIn, project: Project):
    azure.workspace.connections["hub"] = "hf_also_secret"
    done = project.ftkit("stage=train", "secrets.hf_connection=hub")
    assert done.status == 0, str(done)
    assert azure.record.to("POST", "/connections/hub/listsecrets")[-1].status == 200
    assert "hf_also_secret" not in done.out + done.err + project.all_text()
    assert azure.record.holding("hf_also_secret") == []
    missing = project.ftkit("stage=train", "secrets.hf_connection=nowhere", "sft.max_steps=7")
    assert missing.status == 1 and "failed: the connection nowhere cannot be read" in missing.err


def test_a_missing_secret_stops_the_job_before_it_trains(azure: StandIn, project: Project):
    failed = project.ftkit("stage=train", "secrets.hf_token=HF-TOKEN")
    assert failed.status == 1
    assert (
        "failed: the secret HF-TOKEN cannot be read" in failed.err and "give the job's identity its role" in failed.err
    )
    assert "step 1/" not in failed.out


def test_a_sweep_is_a_job_for_each_combination(azure: StandIn, project: Project):
    swept = ("lora.r=4,8", "hydra/launcher=azureml", "sft.max_steps=2", "-m")
    done = project.ftkit("stage=train", *swept)
    assert done.status == 0, str(done)
    jobs = jobs_of(azure, project)
    assert len(jobs) == 2
    assert {job.properties["experimentName"] for job in jobs} == {"ftkit"}
    for rank in (4, 8):
        assert (project.folder / "outputs" / f"{project.name}-lora.r={rank}" / "train" / "record.json").is_file()
        assert any(line.startswith(f"lora.r={rank}  ") and "step 2/2" in line for line in done.out.splitlines())


def test_the_base_may_be_a_registered_model(azure: StandIn, sdk, tmp_path: Path):
    sdk("register", "tiny-base", asset_path("package:tiny-gpt-oss"))
    base = ("model.pretrained_model_name_or_path=azureml:tiny-base:1", "model.tokenizer=package:tiny-gpt-oss")
    project = Project(tmp_path, azure, "registered-base", *base, *ONE_NODE, "sft.max_steps=2")
    done = project.ftkit("stage=prepare,publish,train,merge")
    assert done.status == 0, str(done)
    (job,) = jobs_of(azure, project)
    assert job.properties["inputs"]["model"]["uri"].endswith("/models/tiny-base/versions/1")
    assert not [name for name in job.snapshot if "tiny-gpt-oss" in name]


def test_the_base_may_be_a_folder_which_is_sent_once(azure: StandIn, folder: Path, tmp_path: Path):
    """Guard: no ignore file of the folder drops a part of the model."""
    shutil.copytree(asset_path("package:tiny-gpt-oss"), tmp_path / "base")
    (tmp_path / "base" / ".gitignore").write_text("*.safetensors\n")
    (tmp_path / "base" / ".amlignore").write_text("*.json\n*.jinja\n")
    own = (f"model.pretrained_model_name_or_path={tmp_path / 'base'}", *ONE_NODE, "sft.max_steps=2")
    project = Project(tmp_path, azure, "base-in-a-folder", *own)
    done = project.ftkit("stage=prepare,publish,train")
    assert done.status == 0 and "all is sent but .amlignore, .gitignore" in done.out, str(done)
    azure.record.clear()
    again = project.ftkit("stage=train", "sft.learning_rate=1e-3")
    assert again.status == 0, str(again)
    assert azure.record.uploaded_bytes < 500_000  # code and configuration, and not the model's 2 MB


def test_an_upload_of_inputs_that_breaks_off_gives_its_reason(azure: StandIn, project: Project):
    azure.faults.cut("PUT", r"blob\.core.*config\.yaml", times=FOREVER)
    failed = project.ftkit("stage=train")
    assert failed.status == 1 and "Traceback" not in failed.err and "\x1b" not in failed.err
    assert "cannot submit a job that runs train: the connection broke off" in failed.err
    assert "the same command goes on from here" in failed.err and not jobs_of(azure, project)
    azure.faults.clear()
    done = project.ftkit("stage=train", "sft.max_steps=2")
    assert done.status == 0 and len(jobs_of(azure, project)) == 1, str(done)


def test_a_registered_base_needs_a_tokenizer_here(azure: StandIn, tmp_path: Path):
    base = "model.pretrained_model_name_or_path=azureml:tiny-base:1"
    refused = Project(tmp_path, azure, "registered-base", base).ftkit("stage=prepare")
    assert refused.status == 2
    assert (
        "model.tokenizer=<hub id>, or a folder with its tokenizer" in refused.err
    )  # no published model has this shape
    local = Project(tmp_path, azure, "registered-base", base, "model.tokenizer=package:tiny-gpt-oss")
    refused = local.ftkit("stage=train", "compute=local", "deployment=local")
    assert refused.status == 2 and "is in Azure ML, but compute.platform is local" in refused.err


def test_a_native_sweep_is_one_job_with_a_trial_for_each_combination(azure: StandIn, project: Project):
    swept = ("lora.r=4,8", "compute.sweep=native", "sft.max_steps=2", "-m")
    done = project.ftkit("stage=train", *swept)
    assert done.status == 0, str(done)
    assert "2 trials finished" in done.out
    sweep = next(job for job in jobs_of(azure, project) if "searchSpace" in job.properties)
    assert sweep.properties["earlyTermination"]["policyType"] == "MedianStopping"
    assert sweep.properties["objective"] == {"primaryMetric": "loss", "goal": "minimize"}
    for rank in (4, 8):
        run = Project(project.folder, azure, f"{project.name}-lora.r={rank}")
        record = run.record("train")
        assert record["settings"]["lora.r"] == rank
        assert record["place"].endswith(f"/{project.name}-lora.r={rank}")
        assert (run.run / "train" / "metrics.jsonl").read_text().count('"loss"') == 2


def test_a_native_sweep_refuses_what_it_cannot_vary(azure: StandIn, project: Project):
    refused = project.ftkit("stage=prepare,train", "lora=attention,experts", "compute.sweep=native", "-m")
    assert refused.status == 2
    assert "prepare runs in no job" in refused.err and "not options of a group" in refused.err
