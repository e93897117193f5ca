"""Keys of deployment as what an endpoint is started with."""

from __future__ import annotations

import json
import shlex

import pytest

from ftkit.config.problems import choices_of
from ftkit.config.resolve import resolve
from ftkit.families.gpt_oss import GRAPH_SIZES
from ftkit.platforms.azureml import deployment_spec
from ftkit.platforms.local import server_processes
from ftkit.serving.endpoint.engine import ENGINES
from ftkit.serving.endpoint.vllm_engine import VllmEngine
from ftkit.serving.servers import SERVERS
from ftkit.serving.settings import engine_arguments, variables_of

pytestmark = pytest.mark.usefixtures("in_empty_folder")
TINY = ("experiment=tiny", "stage=deploy")
GRAPHS = ["--compilation-config", json.dumps({"cudagraph_capture_sizes": GRAPH_SIZES})]


def test_limits_variables_and_origins_reach_score():
    keys = ["max_new_tokens=7", "max_input_tokens=99", "environment_variables={A:'1'}", "engine=vllm"]
    keys += ["cors_origins=['https://a.example','http://b']", "allowed_hosts=[c]", "engine_args={max_model_len:8}"]
    variables = variables_of(resolve([*TINY, *(f"deployment.{key}" for key in keys)]), "m-01")
    assert variables == {
        **{"A": "1", "FTKIT_MODEL": "m-01,tiny", "FTKIT_ENGINE": "vllm"},
        "FTKIT_ENGINE_ARGS": shlex.join([*GRAPHS, "--max-model-len", "8"]),
        **{"FTKIT_MAX_NEW_TOKENS": "7", "FTKIT_MAX_INPUT_TOKENS": "99", "FTKIT_MAX_CONCURRENT_REQUESTS": "32"},
        **{"AML_CORS_ORIGINS": "https://a.example,http://b", "FTKIT_ALLOWED_HOSTS": "c"},
    }


def test_vllms_own_server_reads_calls_of_tools_unless_told_not_to():
    served = [*TINY, "deployment.server=vllm"]
    assert engine_arguments(resolve(served)) == ["--tool-call-parser", "openai", "--enable-auto-tool-choice", *GRAPHS]
    keys = "deployment.engine_args={tool_call_parser:null,enable_auto_tool_choice:false,max_model_len:8,seed:'1 2'}"
    arguments = engine_arguments(resolve([*served, keys]))
    assert arguments == ["--no-enable-auto-tool-choice", *GRAPHS, "--max-model-len", "8", "--seed", "1 2"]


@pytest.mark.parametrize(
    ("engine_args", "said"),
    [
        ("{max_cudagraph_capture_size: 64}", ["--max-cudagraph-capture-size", "64"]),
        ("{enforce_eager: true}", ["--enforce-eager"]),
        ("{compilation_config: null}", []),
    ],
)
def test_graphs_that_the_user_says_something_of_are_the_users(engine_args: str, said: list[str]):
    """Guard: OF_GRAPHS."""
    assert engine_arguments(resolve([*TINY, f"deployment.engine_args={engine_args}"])) == said
    assert engine_arguments(resolve(["model=qwen3-0.6b", "stage=deploy", "compute=local", "deployment=local"])) == []


def test_the_servers_that_can_be_asked_for_are_those_that_there_are():
    assert {*choices_of("deployment.server")} == {*SERVERS}


def test_the_engines_that_can_be_asked_for_are_those_that_there_are():
    assert {*choices_of("deployment.engine")} == {"auto", *ENGINES}


@pytest.mark.parametrize(("cores", "fronts"), [(1, 1), (5, 2), (16, 8), (96, 8)])
def test_before_a_vllm_here_stand_as_many_processes_as_half_the_cores(
    cores: int, fronts: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server_processes, "usable_cores", lambda: cores)
    vllm, either = {"FTKIT_ENGINE": "vllm"}, {"FTKIT_ENGINE": "auto"}
    assert server_processes.fronts_of("score", vllm, 1, "auto") == fronts
    assert server_processes.fronts_of("score", vllm, 1, 3) == 3
    assert server_processes.fronts_of("score", {"FTKIT_ENGINE": "transformers"}, 1, "auto") == 1
    assert server_processes.fronts_of("vllm", vllm, 1, "auto") == 1
    assert server_processes.fronts_of("score", vllm, 2, "auto") == 1
    for suits in (True, False):
        monkeypatch.setattr(VllmEngine, "suits", lambda suits=suits: suits)
        assert server_processes.fronts_of("score", either, 1, "auto") == (fronts if suits else 1)


@pytest.mark.usefixtures("workspace_named")
@pytest.mark.parametrize(
    ("keys", "fronts"),
    [
        (["engine=vllm"], "8"),  # of 40 cores
        (["engine=vllm", "instance_type=Standard_NC6s_v3"], "3"),
        (["engine=vllm", "front_processes=2"], "2"),
        (["engine=auto"], "1"),
    ],
)
def test_a_managed_endpoint_has_as_many_workers_by_its_vms_cores(keys: list[str], fronts: str):
    config = resolve(["stage=deploy", *(f"deployment.{key}" for key in keys)])
    variables = deployment_spec.of(config, {"name": "m", "version": "1"}).variables
    assert variables["WORKER_COUNT"] == variables["FTKIT_FRONT_PROCESSES"] == fronts
