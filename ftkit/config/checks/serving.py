"""Merge and deployment: the converter to GGUF, the endpoint, what it serves and what it is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ftkit.config.checks.llama_cpp import converter_can_be_run
from ftkit.config.schema import Config
from ftkit.errors import Problem

OF_KEYS = re.compile(r"^(FTKIT_|AML_|AZUREML_|SCORING_TIMEOUT_MS$|GUNICORN_CMD_ARGS$|WORKER_(COUNT|TIMEOUT)$)")
"""Environment variables of an endpoint that ftkit sets itself, or that the inference server takes for its own."""
BY_KEY = {"FTKIT_MAX_NEW_TOKENS": "max_new_tokens", "FTKIT_MAX_INPUT_TOKENS": "max_input_tokens"} | {
    "SCORING_TIMEOUT_MS": "request_timeout_ms",
    "FTKIT_MAX_CONCURRENT_REQUESTS": "max_concurrent_requests_per_instance",
    "AML_CORS_ORIGINS": "cors_origins",
    "FTKIT_ALLOWED_HOSTS": "allowed_hosts",
}
AZURE_ALONE = {"public_network_access": None, "user_assigned_identities": [], "mirror_traffic": 0}
"""Keys of managed endpoints, and what each is without one."""
FREE = ("FTKIT_BATCH_SIZE", "FTKIT_BODY_TIMEOUT_MS", "FTKIT_HEADER_TIMEOUT_MS", "FTKIT_SEND_TIMEOUT_MS")
"""Settings of score.py that have no key."""


def deployment_fits_its_platform(config: Config) -> Iterator[Problem]:
    deployment, compute = config.deployment, config.compute
    if deployment.managed and not deployment.instance_type:
        what = "null, but a managed endpoint needs a VM size"
        cure = "for instance deployment.instance_type=Standard_NC40ads_H100_v5"
        yield Problem("deployment.instance_type", what, "", cure)
    if deployment.managed != compute.elsewhere:
        other = "managed" if compute.elsewhere else "local"
        also = ", or compute=local" if deployment.platform == "local" else ""
        yield Problem(
            "deployment.platform",
            f"{deployment.platform}, but compute.platform is {compute.platform}, where the model is registered",
            "",
            f"deployment={other}{also}",
        )


def server_has_its_image(config: Config) -> Iterator[Problem]:
    deployment = config.deployment
    if deployment.server == "vllm" and deployment.managed and not deployment.image:
        yield Problem("deployment.image", "null, but vllm is served from an image", "", "deployment=vllm")
    if deployment.server == "score" and deployment.image:
        what = f"{deployment.image}, but server=score runs in the image of environment.serve"
        yield Problem("deployment.image", what, "", "deployment.image=null, or deployment=vllm")
    if deployment.server == "vllm" and not deployment.managed and deployment.instance_count > 1:
        said = f"{deployment.instance_count}, but one vLLM is started here"
        yield Problem("deployment.instance_count", said, "", "deployment.instance_count=1, or deployment.server=score")


def adapters_can_be_served(config: Config) -> Iterator[Problem]:
    deployment, key = config.deployment, "deployment.adapters"
    if not deployment.adapters:
        return
    names = ", ".join(deployment.adapters)
    if deployment.server != "score":
        said = f"{names}, but only score.py serves adapters by name"
        yield Problem(key, said, "", "deployment.adapters={}, or deployment.server=score deployment.image=null")
    base = config.model.pretrained_model_name_or_path
    if deployment.managed and base.startswith("azureml:"):
        said = f"{names}, but they are sent with their base, and {base} cannot be read here"
        cure = f"model.pretrained_model_name_or_path=<hub id or folder of {base}>, or deployment.adapters={{}}"
        yield Problem(key, said, "", cure)
    if config.registration.gate:
        said = f"{names}, but registration.gate judges the merged model, which is not served beside adapters"
        yield Problem(key, said, "", "registration.gate=[], or deployment.adapters={}")
    if config.model.name in deployment.adapters:
        said = f"{config.model.name} is the name of the base model itself"
        yield Problem(key, said, "", f"another name than {config.model.name}")


def endpoint_settings_reach_their_engine(config: Config) -> Iterator[Problem]:
    deployment = config.deployment
    if deployment.engine_args and (deployment.server, deployment.engine) == ("score", "transformers"):
        said = f"{', '.join(deployment.engine_args)}, arguments of vllm serve, but the engine is transformers"
        yield Problem("deployment.engine_args", said, "", "deployment.engine=vllm, or deployment.engine_args={}")
    own_vllm = not deployment.managed and (deployment.server, deployment.engine) == ("score", "vllm")
    if own_vllm and deployment.instance_count > 1:
        said = f"{deployment.instance_count}, but each would start a vLLM that takes the whole GPU"
        yield Problem("deployment.instance_count", said, "", "deployment.instance_count=1")
    if deployment.allowed_hosts and (deployment.managed or deployment.server != "score"):
        said = f"{', '.join(deployment.allowed_hosts)}, but only score.py on the local platform looks at the host"
        yield Problem("deployment.allowed_hosts", said, "", "deployment.allowed_hosts=[]")
    for name in deployment.environment_variables:
        if OF_KEYS.match(name) and name not in FREE:
            key = f"deployment.{BY_KEY[name]}" if name in BY_KEY else ""
            cure = f"the key {key}" if key else "leave it out"
            yield Problem(f"deployment.environment_variables.{name}", "is set by ftkit itself", "", cure)


def front_processes_have_one_vllm(config: Config) -> Iterator[Problem]:
    deployment, key = config.deployment, "deployment.front_processes"
    if deployment.front_processes in ("auto", 1):
        return
    if deployment.server != "score" or deployment.engine not in ("vllm", "auto"):
        of = f"server={deployment.server}" if deployment.server != "score" else f"engine={deployment.engine}"
        said = f"{deployment.front_processes}, but with deployment.{of} no vLLM stands behind score.py"
        yield Problem(key, said, "", f"{key}=auto")
    elif deployment.managed and deployment.engine == "auto":
        said = f"{deployment.front_processes}, but the image holds no vLLM with deployment.engine=auto"
        yield Problem(key, said, "", "deployment.engine=vllm")
    elif deployment.instance_count > 1 and not deployment.managed:
        said = (
            f"{deployment.front_processes} before one vLLM, but deployment.instance_count={deployment.instance_count}"
        )
        yield Problem(key, said, "", "deployment.instance_count=1")


def rollout_ends_at_100(config: Config) -> Iterator[Problem]:
    steps = config.deployment.rollout
    if not steps or steps[-1] != 100 or steps != sorted(set(steps)):
        what = f"{steps} does not rise to 100 percent"
        yield Problem("deployment.rollout", what, "", "deployment.rollout=[10,50,100]")


def azure_alone_has_its_options(config: Config) -> Iterator[Problem]:
    deployment = config.deployment
    if deployment.managed:
        return
    for key, none in AZURE_ALONE.items():
        if (given := getattr(deployment, key)) != none:
            said = f"{given}, which managed endpoints alone have, and deployment.platform is local"
            text = {None: "null"}.get(none, str(none))
            yield Problem(f"deployment.{key}", said, "", f"deployment.{key}={text}, or a compute on Azure ML")


def invoke_has_one_request(config: Config) -> Iterator[Problem]:
    invoke = config.invoke
    given = [name for name in ("prompt", "messages", "file") if getattr(invoke, name) is not None]
    if "invoke" not in config.stages or len(given) == 1:
        return
    if not given:
        cure = "invoke.prompt='7たす5は？', or invoke.file=request.json"
        yield Problem("invoke", "nothing to ask", "", cure)
    else:
        drop = " ".join(f"invoke.{name}=null" for name in given[1:])
        yield Problem("invoke", f"{' and '.join(given)} are both given", "", f"leave one: {drop}")


CHECKS = (
    converter_can_be_run,
    deployment_fits_its_platform,
    server_has_its_image,
    adapters_can_be_served,
    endpoint_settings_reach_their_engine,
    front_processes_have_one_vllm,
    rollout_ends_at_100,
    azure_alone_has_its_options,
    invoke_has_one_request,
)
