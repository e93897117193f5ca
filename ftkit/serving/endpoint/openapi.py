"""The OpenAPI document of an endpoint, with the limits that it has."""

from __future__ import annotations

from typing import Any

from ftkit.chat.messages import EFFORTS
from ftkit.serving.endpoint.chats import LEFT_OUT, OF_AN_ANSWER, ROLES
from ftkit.serving.endpoint.limits import Limits
from ftkit.serving.endpoint.requests import USUAL_LENGTH


def document(limits: Limits) -> dict[str, Any]:
    """OpenAPI 3.1 of ``/score``."""
    schemas = {"Request": _request(limits), "Answer": _answer(), "Error": _error()}
    errors = {
        400: "not a request",
        404: "no such model",
        408: "too slow a body",
        405: "another method",
        413: "too long a body",
        415: "a compressed body",
        429: "too many requests in hand",
        500: "the model failed",
    }
    responses = {
        "200": {"description": "the answer", "content": _json("Answer") | {"text/event-stream": {}}},
        **{str(status): {"description": what, "content": _json("Error")} for status, what in errors.items()},
    }
    post = {"requestBody": {"required": True, "content": _json("Request")}, "responses": responses}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "a model, fine-tuned by ftkit",
            "version": "1",
            "description": "A body with a model is one of OpenAI's chat completions, or with an input of the Responses "
            "API, and so is the answer. Locally there are /v1/chat/completions, /v1/responses and /v1/models as well.",
        },
        "paths": {"/score": {"post": post}},
        "components": {"schemas": schemas},
    }


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _object(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **more}


def _request(limits: Limits) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    parts = {"type": "array", "items": {"type": "object"}}
    beside = {name: {"description": "left out"} for name in LEFT_OUT} | {name: {} for name in OF_AN_ANSWER}
    message = _object(
        {
            "role": {"enum": list(ROLES)},
            "content": {"anyOf": [{"type": ["string", "null"]}, parts]},
            "name": {"description": "left out"},
            "tool_call_id": {"type": ["string", "null"]},
        }
        | beside,
        "role",
    )
    properties = {
        "messages": {"type": "array", "items": message, "minItems": 1, "maxItems": limits.messages},
        "prompt": text,
        "max_new_tokens": {
            "type": "integer",
            "minimum": 1,
            "maximum": limits.max_new_tokens,
            "default": min(USUAL_LENGTH, limits.max_new_tokens),
        },
        "temperature": {"type": "number", "minimum": 0, "maximum": 2, "default": 0},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1, "default": 1},
        "seed": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        "reasoning_effort": {"enum": list(EFFORTS)},
        "stop": {"anyOf": [text, {"type": "array", "items": text, "maxItems": 8}]},
        "stream": {"type": "boolean", "default": False},
        "tools": {
            "type": "array",
            "items": {"type": "object"},
            "maxItems": 128,
            "description": "as in OpenAI's format",
        },
        "tool_choice": {"enum": ["auto", "none"]},
    }
    either = [{"required": ["messages"]}, {"required": ["prompt"]}]
    return _object(properties, oneOf=either, additionalProperties=False)


def _answer() -> dict[str, Any]:
    count = {"type": "integer", "minimum": 0}
    properties = {
        "output": {"type": "string"},
        "thinking": {"type": "string"},
        "usage": _object({"prompt_tokens": count, "completion_tokens": count}, "prompt_tokens", "completion_tokens"),
        "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
        "tool_calls": {"type": "array", "items": {"type": "object"}, "description": "as in OpenAI's format"},
        "note": {"type": "string", "description": "why something is missing, and what stands in no other field"},
    }
    return _object(properties, "output", "thinking", "usage", "finish_reason", additionalProperties=False)


def _error() -> dict[str, Any]:
    properties = {
        "message": {"type": "string"},
        "field": {"type": "string", "description": "what is wrong, messages[0].role for instance; empty for the body"},
        "type": {"type": "string"},
        "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "null"]},
    }
    return _object({"error": _object(properties, "message", "field", "type", "param")}, "error")
