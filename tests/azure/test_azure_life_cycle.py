"""experiment=tiny-azure stage=all by the command line: from data to an answer, on two nodes; then everything again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import Command
from helpers.marks import needs_azures_server
from project import Project
from standin import StandIn, names

pytestmark = [pytest.mark.slow, needs_azures_server]

STAGES = "stage=all"


@pytest.fixture(scope="module")
def project(azure: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"), azure)


@pytest.fixture(scope="module")
def first(project: Project, azure: StandIn) -> Command:
    """The command run once, and what was sent kept in ``sent``."""
    azure.wipe()
    azure.record.clear()
    done = project.ftkit(STAGES)
    assert done.status == 0, str(done)
    return done


def job_of(project: Project, azure: StandIn):
    return azure.jobs[project.record("train")["result"]["job"]]


def test_every_stage_reports_and_the_jobs_log_is_shown_as_it_is(first: Command, azure: StandIn, project: Project):
    assert first.err == ""
    for stage in ("environment", "prepare", "publish", "train", "merge", "register", "deploy", "invoke"):
        assert re.search(rf"^{stage} ", first.out, re.MULTILINE), stage
    assert re.search(r"^ {13}step 56/56 ", first.out, re.MULTILINE)
    name = job_of(project, azure).name
    assert f"job {name} on 2 × Standard_F4s_v2" in first.out
    assert f"https://ml.azure.com/runs/{name}?wsid={names.WORKSPACE_ID}&tid={names.TENANT}" in first.out
    assert not re.search(r"RunId|Web View|Streaming user_logs", first.out)


def test_two_nodes_train_in_one_process_each(first: Command, azure: StandIn, project: Project):
    body = azure.resources.get(f"jobs/{job_of(project, azure).name}")["properties"]
    assert body["distribution"]["processCountPerInstance"] == 1 and body["resources"]["instanceCount"] == 2
    assert "on 2 × CPU" in first.out
    assert project.record("train")["result"]["global_step"] == 56


def test_the_snapshot_holds_code_and_is_below_5_mb(first: Command, azure: StandIn, project: Project):
    job = job_of(project, azure)
    assert all(name.startswith("ftkit/") for name in job.snapshot)
    assert not [name for name in job.snapshot if "__pycache__" in name or name.endswith("sample.jsonl")]
    assert sum((job.folder / "code" / name).stat().st_size for name in job.snapshot) < 5_000_000


def test_records_and_curves_come_back_and_weights_stay(first: Command, project: Project):
    for stage in ("train", "merge"):
        record = project.record(stage)
        assert record["place"].startswith(f"azureml://jobs/{record['result']['job']}/outputs/runs/paths/")
    assert (project.run / "train" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (project.run / "train" / "metrics.jsonl").read_text().count('"loss"') == 56
    assert not (project.run / "merged").exists() and not (project.run / "train" / "adapter").exists()


def test_metrics_arrive_by_mlflow(first: Command, azure: StandIn, project: Project):
    latest = azure.tracking[job_of(project, azure).name].latest()
    assert latest["step"] == 56 and latest["loss"] == pytest.approx(project.record("train")["result"]["last_loss"])


def test_the_model_is_registered_where_it_lies_with_its_lineage(first: Command, azure: StandIn, project: Project):
    model = azure.resources.get("models/tiny-azure-01-pre/versions/1")["properties"]
    assert model["modelType"] == "custom_model"
    data = project.record("publish")["result"]
    assert model["tags"]["data"] == f"apto_reasoning_harmony:{data['version']}"
    assert model["tags"]["digest"] == project.record("merge")["result"]["digest"]
    assert model["tags"]["train.last_loss"] == str(project.record("train")["result"]["last_loss"])


def test_data_asset_carries_counts_and_digest(first: Command, azure: StandIn, project: Project):
    record = project.record("publish")["result"]
    tags = azure.resources.get(f"data/apto_reasoning_harmony/versions/{record['version']}")["properties"]["tags"]
    assert (tags["rows"], tags["train"], tags["heldout"], tags["rejected"]) == ("256", "213", "43", "0")
    assert tags["digest"].startswith(record["version"])


def test_all_that_was_made_says_so_and_whose_it_is(first: Command, azure: StandIn, project: Project):
    data, endpoint = project.record("publish")["result"]["version"], "onlineEndpoints/ftkit-tiny"
    assets = (
        f"data/apto_reasoning_harmony/versions/{data}",
        "models/tiny-azure-01-pre/versions/1",
        f"jobs/{job_of(project, azure).name}",
    )
    tags = [azure.resources.get(path)["properties"]["tags"] for path in assets]
    tags += [azure.resources.get(path)["tags"] for path in (endpoint, f"{endpoint}/deployments/blue")]
    for each in tags:
        assert each.items() >= {"made-by": "ftkit", "ftkit-run": project.name, "ftkit-owner": names.CLIENT}.items()
    assert tags[-1]["ftkit-model"] == "tiny-azure-01-pre:1" and tags[-1]["ftkit-rollout"] == tags[-2]["ftkit-rollout"]
    for kind in ("train", "serve"):
        (image,) = azure.resources.children(f"environments/ftkit-{kind}/versions")
        assert image["properties"]["tags"]["made-by"] == "ftkit"


def test_a_second_run_does_nothing_and_sends_next_to_nothing(first: Command, azure: StandIn, project: Project):
    before = azure.images.builds
    again = project.ftkit(STAGES)
    assert again.status == 0, str(again)
    assert azure.record.sent_bytes < 10_000 and azure.record.uploaded_bytes == 0
    assert again.out.count("up to date") == 6 and "unchanged" in again.out
    assert azure.images.builds == before


def test_from_an_empty_folder_the_same_data_and_images_are_found(first: Command, azure: StandIn, tmp_path: Path):
    other = Project(tmp_path, azure)
    done = other.ftkit("stage=environment,prepare,publish")
    assert done.status == 0, str(done)
    assert azure.record.uploaded_bytes == 0 and "same content as before" in done.out


def test_evaluation_alone_is_a_job_on_the_model_that_an_earlier_job_made(
    first: Command, azure: StandIn, project: Project
):
    done = project.ftkit("stage=evaluate", "evaluation.questions=4", "compute.nodes=1")
    assert done.status == 1 and "compute.nodes" in done.err  # another setting: the model was made with two nodes
    done = project.ftkit("stage=evaluate", "evaluation.questions=4")
    assert done.status == 0, str(done)
    assert "4 held-out questions" in done.out
    assert len((project.run / "evaluate" / "answers.jsonl").read_text().splitlines()) == 4


def test_a_file_of_questions_goes_with_the_job(first: Command, azure: StandIn, project: Project):
    (project.folder / "mgsm_ja.tsv").write_text("3メートルは何センチメートルですか？\t300\n", encoding="utf-8")
    done = project.ftkit("stage=evaluate", "evaluation=mgsm-ja", "evaluation.max_new_tokens=60")
    assert done.status == 0, str(done)
    assert "1 question of mgsm-ja" in done.out and project.record("evaluate")["result"]["merged"]["right"] == 1
    assert "evaluation" in (project.run / "evaluate" / "report.html").read_text(encoding="utf-8")
    again = project.ftkit("stage=evaluate", "evaluation=mgsm-ja", "evaluation.max_new_tokens=60")
    assert "up to date" in again.out, str(again)


def test_the_endpoint_answers_in_japanese(first: Command):
    assert re.search(r"^ +answer +1200センチメートルです。$", first.out, re.MULTILINE)


def test_no_secret_is_left_anywhere(first: Command, azure: StandIn, project: Project):
    endpoint = azure.resources.get("onlineEndpoints/ftkit-tiny")
    assert endpoint
    for secret in (azure.environment["AZURE_CLIENT_SECRET"], names.ACCOUNT_KEY):
        assert secret not in first.out + first.err + project.all_text()
        assert azure.record.holding(secret) == []


def test_plan_knows_what_is_up_to_date_without_asking(first: Command, azure: StandIn, project: Project):
    done = project.ftkit("stage=plan")
    assert done.status == 0 and done.out.count("up to date") == 6
    assert list(azure.record) == []


def test_teardown_leaves_nothing_that_costs_money(first: Command, azure: StandIn, project: Project):
    assert azure.costing() == ["deployment ftkit-tiny/blue"]
    done = project.ftkit("stage=teardown", "yes=true")
    assert done.status == 0, str(done)
    assert "endpoint ftkit-tiny" in done.out and "USD an hour" in done.out
    assert azure.costing() == []


def test_no_local_stage_imports_azure(tmp_path: Path):
    code = (
        "import sys; from ftkit.__main__ import main\n"
        "try: main(['experiment=tiny', 'stage=environment,prepare,publish,plan'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name == 'azure' or name.startswith('azure.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
