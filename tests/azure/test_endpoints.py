"""deploy, invoke, teardown by the command line: versions that come into service, and everything that goes wrong."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from endpoint_commands import NAME, deployments, ended, fails, puts, starting, succeeds, traffic
from helpers.command import read_until
from helpers.marks import needs_azures_server
from project import Project
from sdk_worker import SdkWorker
from standin import StandIn

pytestmark = pytest.mark.slow

MODEL = (
    "compute.nodes=1",
    "sft.max_steps=2",
    "sft.per_device_train_batch_size=2",
    "sft.eval_strategy=no",
    "registration.model_name=served",
)
SIZE = "Standard_F4s_v2"
FAMILY = "standardFSv2Family"
IDENTITIES = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities"
VLLM = "deployment=vllm"
"""A container that is up in a moment stands for vLLM; what the other tests need is only that something answers."""


@pytest.fixture(scope="module")
def project(azure: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run whose model is registered."""
    project = Project(tmp_path_factory.mktemp("endpoints"), azure, "served", *MODEL)
    succeeds(project.ftkit("stage=prepare,publish,train,merge,register"))
    return project


@pytest.fixture(scope="module")
def next_version(azure: StandIn, project: Project) -> Project:
    """Another run that builds on the first one, and registers another version of the same model."""
    other = Project(project.folder, azure, "served-next", *MODEL, "run.base=served", "merge.format=bf16")
    succeeds(other.ftkit("stage=merge,register"))
    assert other.record("register")["result"]["version"] == "2"
    return other


@pytest.fixture(autouse=True)
def no_key_is_seen_and_nothing_stays(azure: StandIn, project: Project) -> Iterator[None]:
    yield
    for key in [key for keys in azure.endpoints.keys.values() for key in keys.values()]:
        assert azure.record.holding(key) == [] and key not in project.all_text()
    azure.endpoints.clear()
    azure.monitor.settings.clear()
    assert azure.quota.in_use[FAMILY] == 0


@pytest.fixture
def gate(azure: StandIn, tmp_path: Path) -> Path:
    """The vLLM container is there, and comes up when this file does not exist."""
    script, gate = Path(__file__).with_name("chat_container.py"), tmp_path / "gate"
    azure.serving.containers["vllm/vllm-openai"] = [sys.executable, str(script), "{port}", "{model}", str(gate)]
    return gate


# Into service.


@needs_azures_server
def test_a_model_is_served_asked_and_served_again_without_doing_anything(
    azure: StandIn, project: Project, next_version: Project, tmp_path: Path
):
    out = succeeds(project.ftkit("stage=deploy,invoke"))
    assert "blue serves served:1 with 100 % of the traffic" in out
    assert "1200センチメートルです。" in out and "ended by itself" in out
    body = azure.resources.get(f"onlineEndpoints/{NAME}/deployments/blue")["properties"]
    assert body["requestSettings"] == {"requestTimeout": "PT3M", "maxConcurrentRequestsPerInstance": 32}
    assert body["livenessProbe"]["initialDelay"] == "PT10M" and body["readinessProbe"]["failureThreshold"] == 60
    assert "gthread" in body["environmentVariables"]["GUNICORN_CMD_ARGS"]
    (key,) = {keys["primaryKey"] for keys in azure.endpoints.keys.values()}
    assert key not in out

    azure.record.clear()
    assert "deploy       up to date" in succeeds(project.ftkit("stage=deploy"))
    (project.run / "deploy" / "record.json").unlink()
    assert "blue already serves served:1" in succeeds(project.ftkit("stage=deploy"))
    assert not azure.record.to("PUT", "/onlineEndpoints/") and azure.record.uploaded_bytes == 0

    azure.record.clear()
    fails(next_version.ftkit("stage=deploy"), "a live version of another run", "0.17 USD", "yes=true")
    azure.record.clear()
    out = succeeds(next_version.ftkit("stage=deploy,invoke", "yes=true"))
    assert "green serves served:2 with 100 % of the traffic" in out and "センチメートル" in out
    assert puts(azure) == [{"green": 10, "blue": 90}, {"green": 50, "blue": 50}, {"green": 100}]
    green = azure.serving.find(NAME, "green")
    assert green and green.answered >= 2 and green.mirrored == 0
    assert deployments(azure) == ["green"] and azure.record.uploaded_bytes == 0, "the scoring script is there already"

    out = succeeds(project.ftkit("stage=teardown", "yes=true"))
    assert "run served-next" in out and "left as it is" in out and "nothing to do" in out
    out = fails(next_version.ftkit("stage=teardown"), "yes=true")
    assert f"green serves served:2 with 100 % of the traffic on 1 × {SIZE}, 0.17 USD an hour" in out
    succeeds(next_version.ftkit("stage=teardown", "yes=true"))
    assert azure.costing() == [] and not azure.resources.children("onlineEndpoints")
    fails(project.ftkit("stage=invoke"), f"the endpoint {NAME} is not running")


def test_vllm_speaks_openais_format_and_entra_tokens_are_taken(azure: StandIn, project: Project, gate: Path):
    entra = (VLLM, "deployment.auth_mode=aad_token")
    out = succeeds(project.ftkit("stage=deploy,invoke", *entra))
    assert "inference.ml.azure.com/v1/chat/completions" in out
    assert "thinking  served" in out and "answer    heard system user" in out
    environment = azure.resources.children("environments/ftkit-serve-vllm/versions")[0]["properties"]
    assert environment["inferenceConfig"]["livenessRoute"] == {"path": "/health", "port": 8000}
    assert any("FROM vllm/vllm-openai:v0.13.0" in build.log for build in azure.images.builds)
    assert not azure.record.to("POST", "/listKeys")
    fails(project.ftkit("stage=deploy", VLLM, "deployment.instance_count=2"), "takes aad_token", "stage=teardown")
    assert deployments(azure) == ["blue"]


def test_what_a_team_sets_stands_where_azure_takes_it(azure: StandIn, project: Project, gate: Path):
    identity = f"{IDENTITIES}/endpoints"
    closed = ("deployment.public_network_access=disabled", f"deployment.user_assigned_identities=[{identity}]")
    team = (VLLM, *closed, "tags={cost-center: a17}", "deployment.autoscale.max_instances=3")
    assert "autoscale from 1 to 3 instances" in succeeds(project.ftkit("stage=deploy", *team))
    endpoint = azure.resources.get(f"onlineEndpoints/{NAME}")
    assert endpoint["properties"]["publicNetworkAccess"] == "Disabled"
    assert endpoint["identity"]["type"] == "UserAssigned" and [*endpoint["identity"]["userAssignedIdentities"]] == [
        identity
    ]
    blue = azure.resources.get(f"onlineEndpoints/{NAME}/deployments/blue")
    (rules,) = azure.monitor.settings.values()
    assert rules["properties"]["targetResourceUri"] == blue["id"]
    for made in (endpoint, blue, rules):
        assert made["tags"].items() >= {"cost-center": "a17", "made-by": "ftkit", "ftkit-run": "served"}.items()
    fails(project.ftkit("stage=deploy", VLLM), "was made with public_network_access=disabled", "stage=teardown")
    fails(project.ftkit("stage=deploy", VLLM, closed[0]), "keeps the identity", f"identities=[{identity}]")

    azure.record.clear()
    copies = ("deployment.mirror_traffic=10", "deployment.mirror_minutes=0.02", "deployment.request_timeout_ms=170000")
    assert "green: gets copies of 10 %" in succeeds(project.ftkit("stage=deploy", *team, *copies))
    bodies = [json.loads(seen.body)["properties"] for seen in azure.record.to("PUT", f"/{NAME}$")]
    assert [body.get("mirrorTraffic") or {} for body in bodies] == [{"green": 10}, {}, {}, {}]
    assert bodies[0]["traffic"] == {"blue": 100} and deployments(azure) == ["green"]
    (rules,) = azure.monitor.settings.values()
    assert rules["properties"]["targetResourceUri"].endswith(f"/{NAME}/deployments/green")
    model = azure.resources.get("models/served/versions/1")["properties"]
    assert model["tags"].items() >= {"made-by": "ftkit", "ftkit-run": "served"}.items()


# Refused before anything is made.


def test_too_small_a_quota_and_an_unknown_size_are_found_before_anything_is_made(azure: StandIn, project: Project):
    azure.quota.limits[FAMILY] = 7
    kept = f"2 × {SIZE} (1, and 1 that Azure keeps for upgrades) takes 8 vCPUs of {FAMILY}, and 7 of 7 are free"
    fails(project.ftkit("stage=deploy"), kept, "Azure's portal")
    fails(project.ftkit("stage=deploy", "deployment.instance_type=Standard_F4_v2"), f"did you mean {SIZE}?")
    assert not azure.record.to("PUT", "/onlineEndpoints/")


def test_a_wrong_secret_an_identity_without_the_role_and_another_ones_endpoint(
    azure: StandIn, project: Project, sdk: SdkWorker
):
    fails(project.ftkit("stage=deploy", AZURE_CLIENT_SECRET="not-it"), "no credential is accepted", "az login")
    azure.faults.forbidden("GET", "/usages")
    azure.faults.forbidden("PUT", f"/{NAME}$")
    out = fails(project.ftkit("stage=deploy"), "the identity is not allowed to", "AzureML Data Scientist", "request ")
    assert "VM sizes and quota are not checked first" in out
    azure.faults.clear()
    sdk("make_endpoint", NAME)
    azure.record.clear()
    fails(project.ftkit("stage=deploy"), "that ftkit has not made", "deployment.endpoint_name=")
    assert "nothing to do" in succeeds(project.ftkit("stage=teardown", "yes=true"))
    assert not azure.record.to("PUT", "/onlineEndpoints/") and not azure.record.to("DELETE")


# Failures: traffic as it was, nothing that costs money, and the same command completes.


@needs_azures_server
def test_a_script_that_fails_shows_its_error_and_the_old_version_goes_on(azure: StandIn, project: Project, gate: Path):
    azure.faults.init_fails()
    out = fails(project.ftkit("stage=deploy"), "blue did not start: AZUREML_MODEL_DIR=", "no folder with a config.json")
    assert "blue: " in out and "User's init function failed" in out
    assert azure.costing() == [] and not azure.resources.children("onlineEndpoints")

    succeeds(project.ftkit("stage=deploy", VLLM))
    azure.faults.init_fails(without="chat_template.jinja")
    fails(project.ftkit("stage=deploy"), "green did not start: ", "holds no chat template", "the log is above")
    assert deployments(azure) == ["blue"] and traffic(azure) == {"blue": 100}


def test_a_failed_deployment_is_kept_if_asked_for_and_taken_away_by_the_next_deploy(
    azure: StandIn, project: Project, gate: Path
):
    azure.faults.never_healthy()
    kept = (VLLM, "deployment.keep_failed=true")
    left = f"left: {NAME}/blue (1 × {SIZE}, 0.17 USD an hour), 0 % of the traffic"
    fails(project.ftkit("stage=deploy", *kept), "did not get healthy", left, "stage=teardown")
    assert deployments(azure) == ["blue"]
    out = succeeds(project.ftkit("stage=deploy", *kept))
    assert "deleting blue, left by an earlier deploy (served:1, Failed)" in out
    assert deployments(azure) == ["blue"] and traffic(azure) == {"blue": 100}


def test_a_kept_deployment_that_failed_in_service_is_never_taken_for_the_one_that_serves(
    azure: StandIn, project: Project, gate: Path
):
    azure.faults.answers("POST", "/v1/chat", 500, after=2)  # after the smoke test and half of 100 %
    kept = (VLLM, "deployment.keep_failed=true")
    fails(project.ftkit("stage=deploy", *kept), "the endpoint was asked a question", "left: ", "0 % of the traffic")
    assert deployments(azure) == ["blue"] and traffic(azure) == {}
    assert "deleting blue, left by an earlier deploy" in succeeds(project.ftkit("stage=deploy", *kept))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('{"made": "up"}', "not one of an OpenAI-compatible server"),
        (
            '{"choices": [{"message": {"content": " "}, "finish_reason": "stop"}],'
            ' "usage": {"prompt_tokens": 1, "completion_tokens": 1}}',
            "the answer is empty",
        ),
    ],
)
def test_nonsense_gets_no_traffic(azure: StandIn, project: Project, gate: Path, body: str, says: str):
    azure.faults.nonsense(body)
    fails(project.ftkit("stage=deploy", VLLM), "blue was asked a question", says)
    assert azure.costing() == [] and puts(azure) == [{}]


def test_an_image_that_cannot_be_built(azure: StandIn, project: Project, gate: Path):
    azure.images.clear()
    azure.faults.build_fails()
    fails(project.ftkit("stage=deploy", VLLM), "the image could not be built", "environment.wait=true")
    assert azure.costing() == [] and not azure.resources.children("onlineEndpoints")
    succeeds(project.ftkit("stage=deploy", VLLM))


def test_a_check_that_fails_on_the_way_takes_the_traffic_back(azure: StandIn, project: Project, gate: Path):
    succeeds(project.ftkit("stage=deploy", VLLM))
    azure.record.clear()
    azure.faults.answers("POST", "/v1/chat", 500, after=4)  # after the smoke test, 10 % and half of 50 %
    changed = (VLLM, "deployment.request_timeout_ms=170000")
    out = fails(project.ftkit("stage=deploy", *changed), "the endpoint was asked a question", "(500)", "request ")
    assert "traffic is back: blue has all of it" in out and "green is deleted again" in out
    assert puts(azure) == [{"green": 10, "blue": 90}, {"green": 50, "blue": 50}, {"blue": 100}]
    assert deployments(azure) == ["blue"] and traffic(azure) == {"blue": 100}
    succeeds(project.ftkit("stage=deploy", *changed))
    assert deployments(azure) == ["green"]


def test_what_passes_is_waited_out(azure: StandIn, project: Project, gate: Path):
    faults = (
        azure.faults.throttled("POST", "/v1/chat", retry_after=0.1, times=2),
        azure.faults.throttled("PUT", f"/{NAME}$", retry_after=0.1),
        azure.faults.conflict("PUT", "/deployments/blue"),
        azure.faults.unavailable("GET", "/mfeOperationsStatus", times=1),
        azure.faults.unavailable("POST", "/v1/chat", times=1, after=2),
    )
    out = succeeds(project.ftkit("stage=deploy", VLLM))
    assert "waiting to start the deployment ftkit-tiny/blue: something else is being done to it: Another" in out
    assert [fault.met for fault in faults] == [2, 1, 1, 1, 1]


def test_a_service_that_is_gone_leaves_word_of_what_costs_money(azure: StandIn, project: Project, gate: Path):
    gate.touch()
    process = project.started("stage=deploy", VLLM)
    starting(azure, process, "blue")
    azure.faults.unavailable("", "/onlineEndpoints/")
    gate.unlink()
    done = ended(process)
    assert done.status == 1 and "the service is not available, also after several tries" in done.err
    assert f"left: the endpoint {NAME} and its deployment blue" in done.err and "stage=teardown" in done.err
    azure.faults.clear()
    assert deployments(azure) == ["blue"]
    succeeds(project.ftkit("stage=deploy", VLLM))
    assert deployments(azure) == ["blue"] and traffic(azure) == {"blue": 100}


# Ctrl-C and kill -9.


def test_ctrl_c_in_register_and_in_invoke(azure: StandIn, project: Project, gate: Path):
    succeeds(project.ftkit("stage=deploy", VLLM))
    for stage, method, path in (("register", "GET", "/models/served"), ("invoke", "POST", "/v1/chat/completions")):
        fault = azure.faults.throttled(method, path, retry_after=30)
        process = project.started(f"stage={stage}", VLLM, "force=true")
        assert fault.reached.wait(60)
        process.send_signal(signal.SIGINT)
        done = ended(process)
        assert done.status == 130 and f"interrupted in {stage}; the same command takes it up again" in done.err
        succeeds(project.ftkit(f"stage={stage}", VLLM))


@pytest.mark.parametrize("when", ["blue: starting", "blue: healthy"])
def test_ctrl_c_in_a_first_deploy_leaves_no_endpoint(azure: StandIn, project: Project, gate: Path, when: str):
    gate.touch()
    process = project.started("stage=deploy", VLLM)
    starting(azure, process, "blue")
    if when == "blue: healthy":
        gate.unlink()
        read_until(process, when)
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert done.status == 130 and "the same command takes it up again" in done.err
    assert azure.costing() == [] and not azure.resources.children("onlineEndpoints")


@pytest.mark.parametrize("when", ["green: starting", "green: 50 %"])
def test_ctrl_c_in_a_rollout_takes_the_traffic_back(azure: StandIn, project: Project, gate: Path, when: str):
    succeeds(project.ftkit("stage=deploy", VLLM))
    azure.record.clear()
    process = project.started("stage=deploy", VLLM, "force=true")
    starting(azure, process, "green")
    if when != "green: starting":
        read_until(process, when)
    process.send_signal(signal.SIGINT)
    assert ended(process).status == 130
    assert deployments(azure) == ["blue"] and traffic(azure) == {"blue": 100}


def test_ctrl_c_while_the_old_version_goes_is_told_and_the_same_command_deletes_it(
    azure: StandIn, project: Project, gate: Path
):
    succeeds(project.ftkit("stage=deploy", VLLM))
    azure.faults.conflict("DELETE", "/deployments/blue", times=-1)
    changed = (VLLM, "deployment.request_timeout_ms=170000")
    process = project.started("stage=deploy", *changed)
    read_until(process, "waiting to delete the deployment")
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert done.status == 130 and f"{NAME}/blue (1 × {SIZE}, 0.17 USD an hour) may still run" in done.err
    azure.faults.clear()
    assert "green already serves" in succeeds(project.ftkit("stage=deploy", *changed))
    assert deployments(azure) == ["green"] and traffic(azure) == {"green": 100}


def test_ctrl_c_again_says_what_is_left(azure: StandIn, project: Project, gate: Path):
    gate.touch()
    azure.faults.conflict("DELETE", f"/{NAME}$", times=-1)
    process = project.started("stage=deploy", VLLM)
    starting(azure, process, "blue")
    process.send_signal(signal.SIGINT)
    read_until(process, "waiting to delete the endpoint")
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert done.status == 130
    assert f"left: {NAME}/blue (1 × {SIZE}, 0.17 USD an hour), 0 % of the traffic (interrupted again)" in done.err
    assert "stage=teardown" in done.err
    azure.faults.clear()
    gate.unlink()
    succeeds(project.ftkit("stage=teardown", "yes=true"))
    assert azure.costing() == []


@pytest.mark.parametrize("when", ["green: starting", "green: 10 %"])
def test_a_killed_rollout_is_put_right_by_the_next_deploy(azure: StandIn, project: Project, gate: Path, when: str):
    succeeds(project.ftkit("stage=deploy", VLLM))
    process = project.started("stage=deploy", VLLM, "force=true")
    starting(azure, process, "green")
    if when != "green: starting":
        read_until(process, when)
    process.kill()
    ended(process)
    assert deployments(azure) == ["blue", "green"]
    out = succeeds(project.ftkit("stage=deploy", VLLM))
    assert "deleting green, left by an earlier deploy" in out and "blue already serves" in out
    assert ("traffic goes back to blue" in out) == (when == "green: 10 %")
    assert deployments(azure) == ["blue"] and traffic(azure) == {"blue": 100}
