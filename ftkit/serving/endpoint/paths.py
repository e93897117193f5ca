"""The paths that an endpoint has, and what a request to another one is told."""

from __future__ import annotations

import difflib

from ftkit.serving.endpoint.refusals import VLLM_TAKES_IT, Refused

SCORE, CHAT, RESPONSES, MODELS = "/score", "/v1/chat/completions", "/v1/responses", "/v1/models"
PAGE = "/chat"
"""Of the local endpoint alone: a page to talk with what it serves."""
METHODS = {
    CHAT: ("POST",),
    RESPONSES: ("POST",),
    MODELS: ("GET",),
    f"{MODELS}/<model>": ("GET",),
    SCORE: ("POST", "GET"),
}
OF_VLLM = ("/v1/completions", "/v1/embeddings")


def route(method: str, path: str) -> tuple[str, str]:
    """The entry of ``METHODS`` that a request means, and the model in its path.

    Raises:
        Refused: there is none, or it does not take the method.
    """
    method, path = "GET" if method == "HEAD" else method, path.rstrip("/") or "/"
    name = path.removeprefix(f"{MODELS}/")
    entry = f"{MODELS}/<model>" if name != path else path
    if entry not in METHODS:
        raise Refused(f"there is nothing at {path[:64]}; {_instead(path)}", "", 404, "unknown_path")
    if method not in METHODS[entry]:
        takes = " and ".join(METHODS[entry])
        raise Refused(f"{path[:64]} takes {takes}, not {method[:16]}", "", 405, "method_not_allowed")
    return entry, name if name != path else ""


def _instead(path: str) -> str:
    if path in OF_VLLM:
        return f"this server has {CHAT} and {RESPONSES}; {VLLM_TAKES_IT}"
    if path.startswith(f"{RESPONSES}/"):
        return f"this server keeps no responses: POST {RESPONSES} with the whole chat in input"
    near = difflib.get_close_matches(path, [f"/v1{path}", *METHODS], n=1, cutoff=0.75)
    meant = f"did you mean {near[0]}? " if near and near[0] in METHODS else ""
    return f"{meant}There are {', '.join(f'{methods[0]} {known}' for known, methods in METHODS.items())}"
