"""What the configuration says to an endpoint: environment variables of score.py, arguments of vLLM."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Literal

from ftkit.config.schema import Config
from ftkit.families import family_of
from ftkit.serving.servers import SERVERS

OF_GRAPHS = {
    *("compilation_config", "cudagraph_capture_sizes", "max_cudagraph_capture_size", "enforce_eager"),
    "optimization_level",
}
"""Arguments of vLLM that say which CUDA graphs there are; with one of them the family's own are left out."""
MOST_FRONTS = 8
"""That ``deployment.front_processes=auto`` starts."""


def front_processes(wanted: int | Literal["auto"], cores: int) -> int:
    """Processes of score.py before one vLLM, on a machine with so many CPU cores: half of them are left to vLLM."""
    return max(1, min(MOST_FRONTS, cores // 2)) if wanted == "auto" else wanted


def variables_of(config: Config, model: str) -> dict[str, str]:
    """Environment variables of an endpoint, the user's own among them.

    Args:
        model: the name that requests may give the model; score.py takes ``model.name`` as well.
    """
    settings = config.deployment
    own_name = [config.model.name] if SERVERS[settings.server].is_own else []
    names = list(dict.fromkeys([model, *own_name]))
    lists = {"AML_CORS_ORIGINS": settings.cors_origins, "FTKIT_ALLOWED_HOSTS": settings.allowed_hosts}
    own = {
        "FTKIT_MODEL": ",".join(names),
        "FTKIT_ENGINE": settings.engine,
        "FTKIT_ENGINE_ARGS": shlex.join(engine_arguments(config)),
        "FTKIT_MAX_INPUT_TOKENS": str(settings.max_input_tokens),
        "FTKIT_MAX_NEW_TOKENS": str(settings.max_new_tokens),
        "FTKIT_MAX_CONCURRENT_REQUESTS": str(settings.max_concurrent_requests_per_instance),
    }
    return settings.environment_variables | own | {name: ",".join(words) for name, words in lists.items() if words}


def engine_arguments(config: Config) -> list[str]:
    """Arguments of ``vllm serve``: true is a flag, false its ``--no-`` form, null leaves one of ours out."""
    settings = config.deployment
    server = SERVERS[settings.server]
    family = family_of(config.model.architecture.model_type)
    ours = {} if OF_GRAPHS & settings.engine_args.keys() else family.vllm_arguments
    given: Mapping[str, str | int | float | bool | None] = {**server.arguments, **ours, **settings.engine_args}
    if not server.is_own and settings.cors_origins:
        given = {"allowed_origins": json.dumps(settings.cors_origins)} | given
    arguments: list[str] = []
    for key, value in given.items():
        name = key.replace("_", "-")
        if value is True or value is False:
            arguments.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            arguments += [f"--{name}", str(value)]
    return arguments
