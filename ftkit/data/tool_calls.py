"""Tools in a row: their definitions, calls and results, in the forms of OpenAI, TRL, ShareGPT and Hermes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ftkit.data.refused import Refused, Texts, is_empty, kind_of

NAME = re.compile(r"[A-Za-z0-9_.\-]+")
HERMES_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
HERMES_RESULT = re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)
HERMES_TOOLS = re.compile(r"<tools>\s*([\[{].*?[\]}])\s*</tools>", re.DOTALL)
OTHER_CALLS = re.compile(r"\s*(?:\[TOOL_CALLS\]|<function=|<function_calls?>|<tool_calls>|<tool_code>|```tool_c)")
"""How calls of tools begin that other models write as text."""
PROPERTIES_ALONE = "a tool's parameters were read as the properties of an object"
WRITTEN_OUT = "an answer is the JSON of a call, and trained as text; calls stand under tool_calls"
UNKNOWN = "a function is called that the row's tools do not have"
SCHEMAS = ("parameters", "input_schema")
ARGUMENTS = ("arguments", "parameters", "input")
OF_WRAPPINGS = ("type", "function", "id", "index")
OF_DEFINITIONS = ("type", "name", "description", *SCHEMAS)
OF_CALLS = ("type", "id", "index", "name", *ARGUMENTS)


def definitions(given: Any, texts: Texts) -> list[dict[str, Any]]:
    """The functions of a ``tools`` column: a list, one alone, or the JSON text of either.

    Each is a function, as ``{"type": "function", "function": {…}}`` or without that wrapping.

    Raises:
        Refused: one is no function with a name.
    """
    if isinstance(given, str):
        given = _from_json(given, "tools")
    tools = [] if is_empty(given) else given if isinstance(given, list) else [given]
    return [_definition(tool, f"tools[{i}]", texts) for i, tool in enumerate(tools)]


def _definition(given: Any, at: str, texts: Texts) -> dict[str, Any]:
    if isinstance(given, str):
        given = _from_json(given, at)
    if isinstance(given, dict) and isinstance(given.get("function"), dict):
        texts.leave_out(given, OF_WRAPPINGS, "tools")
        given = given["function"]
    if not isinstance(given, dict) or is_empty(given.get("name")):
        raise Refused("a tool is no function with a name", f"{at} is {kind_of(given)}")
    texts.leave_out(given, OF_DEFINITIONS, "tools")
    parameters = _only(given, SCHEMAS, at)
    if isinstance(parameters, str):
        parameters = _from_json(parameters, f"{at}.parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise Refused("a tool's parameters are no JSON Schema", f"{at}.parameters is {kind_of(parameters)}")
    if parameters and _are_properties(parameters):
        parameters = {"type": "object", "properties": parameters}
        texts.remark(PROPERTIES_ALONE)
    elif parameters and "properties" in parameters:
        parameters = {"type": "object"} | parameters
    description = given.get("description")
    tool = {
        "name": _name(given["name"], at),
        "description": "" if description is None else texts.text(description, f"{at}.description", may_be_empty=True),
        "parameters": parameters and _without_filler(parameters),
    }
    texts.text(as_json(tool, at), at)
    return tool


def _are_properties(parameters: dict[str, Any]) -> bool:
    """Whether a schema lacks the object around its properties, as xLAM's do."""
    of_schemas = {"properties", "$defs", "definitions", "additionalProperties", "patternProperties", "not"}
    return not of_schemas & parameters.keys() and all(isinstance(value, dict) for value in parameters.values())


def _without_filler(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without the nulls that Arrow fills the keys of other rows with; a plain ``default: null`` stays."""
    filled = any(value is None for value in _values(schema))
    return _pruned(schema, keep_default=not filled)


def _values(schema: Any) -> Iterator[Any]:
    """What stands under any key but ``default`` and ``enum``, at any depth."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key not in ("default", "enum"):
                yield value
                yield from _values(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _values(value)


def _pruned(schema: Any, *, keep_default: bool) -> Any:
    if isinstance(schema, list):
        return [_pruned(value, keep_default=keep_default) for value in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value if key in ("default", "enum") else _pruned(value, keep_default=keep_default)
        for key, value in schema.items()
        if value is not None or (key == "default" and keep_default)
    }


def called(given: Any, at: str, texts: Texts) -> list[dict[str, Any]]:
    """Calls of a message: one or several, as objects or JSON text; each becomes OpenAI's ``function`` object.

    Args:
        at: the place, for messages.

    Raises:
        Refused: one has no name, or arguments that are no JSON.
    """
    if isinstance(given, str):
        given = _from_json(given, at)
    calls = given if isinstance(given, list) else [given]
    return [_call(call, at, texts) for call in calls]


def _call(given: Any, at: str, texts: Texts) -> dict[str, Any]:
    if isinstance(given, str):
        given = _from_json(given, at)
    if not isinstance(given, dict):
        raise Refused("a tool call is no object", f"{at} is {kind_of(given)}")
    function = given.get("function")
    if isinstance(function, dict):
        texts.leave_out(given, OF_WRAPPINGS, "tool_calls")
    else:
        function = given
    texts.leave_out(function, OF_CALLS, "tool_calls")
    if given.get("type") not in (None, "function", "tool_use"):
        raise Refused(f"a tool call is of the type {given['type']}, not function", at)
    arguments = _only(function, ARGUMENTS, at)
    call: dict[str, Any] = {
        "type": "function",
        "function": {"name": _name(function.get("name"), at), "arguments": _arguments(arguments, at, texts)},
    }
    return call if is_empty(given.get("id")) else call | {"id": given["id"]}


def _only(given: dict[str, Any], keys: Sequence[str], at: str) -> Any:
    """What stands under one of some keys that mean the same.

    Raises:
        Refused: several hold something else each.
    """
    found = {key: given[key] for key in keys if not is_empty(given.get(key))}
    values = list(found.values())
    if any(value != values[0] for value in values):
        raise Refused(f"{' and '.join(found)} of a tool differ", f"in {at}")
    return values[0] if values else next((given[key] for key in keys if given.get(key) is not None), None)


def _arguments(given: Any, at: str, texts: Texts) -> str:
    """Arguments as JSON text: as it was written, or written from an object."""
    if is_empty(given):
        return "{}"
    written = given if isinstance(given, str) else as_json(given, at)
    content = _from_json(given, f"arguments of {at}") if isinstance(given, str) else given
    if not isinstance(content, dict):
        raise Refused("the arguments of a tool call are no object", f"in {at}: {kind_of(content)}")
    return texts.text(written, f"arguments of {at}")


def is_written_out(answer: str, tools: list[dict[str, Any]]) -> bool:
    """Whether an answer is nothing but the JSON of calls of these tools."""
    if not tools or answer.lstrip()[:1] not in ("{", "["):
        return False
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    names = {tool["name"] for tool in tools}
    calls = found if isinstance(found, list) else [found]
    return bool(calls) and all(isinstance(call, dict) and call.get("name") in names for call in calls)


def without_filler(calls: list[dict[str, Any]], tools: list[dict[str, Any]]) -> None:
    """Take the nulls out of arguments that the function does not have: Arrow gives each call the keys of all others."""
    known = {tool["name"]: (tool["parameters"] or {}).get("properties") for tool in tools}
    for call in calls:
        function = call["function"]
        properties = known.get(function["name"])
        arguments = json.loads(function["arguments"]) if isinstance(properties, dict) else None
        if not isinstance(arguments, dict) or None not in arguments.values():
            continue
        kept = {key: value for key, value in arguments.items() if value is not None or key in (properties or {})}
        if len(kept) < len(arguments):
            function["arguments"] = json.dumps(kept, ensure_ascii=False)


def hermes_calls(text: str, at: str, texts: Texts) -> tuple[str, list[dict[str, Any]]]:
    """What is said before the calls in ``<tool_call>``, and the calls.

    Raises:
        Refused: a tag is not closed, or text follows a call.
    """
    calls = [call for found in HERMES_CALL.finditer(text) for call in called(found.group(1), at, texts)]
    before, *between = HERMES_CALL.split(text)
    rest = between[1::2]
    if not calls or any(part.strip() for part in rest):
        raise Refused("<tool_call> is not closed, or text follows it", at)
    return before.strip(), calls


def hermes_results(text: str) -> list[str]:
    """The results in ``<tool_response>``; a text without it is one result."""
    found = HERMES_RESULT.findall(text)
    return found if found and not HERMES_RESULT.sub("", text) else [text]


def hermes_tools(system: str) -> tuple[str, Any]:
    """A system message without its ``<tools>…</tools>``, and what stands there; None without them."""
    if not (found := HERMES_TOOLS.search(system)):
        return system, None
    content, decoder, tools, at = found.group(1), json.JSONDecoder(), [], 0
    while at < len(content):
        try:
            tool, at = decoder.raw_decode(content, at)
        except ValueError as error:
            raise Refused("<tools> in the system message holds no JSON", str(error)) from error
        tools += tool if isinstance(tool, list) else [tool]
        at += len(content) - at - len(content[at:].lstrip(" \t\r\n,"))
    return (system[: found.start()] + system[found.end() :]).strip(), tools


def _name(given: Any, at: str) -> str:
    name = given.removeprefix("functions.") if isinstance(given, str) else given
    if not isinstance(name, str) or not NAME.fullmatch(name):
        what = "a function's name is not made of letters, digits, _, - and ."
        raise Refused(what, f"{at} has {given!r}")
    return name


def _object(pairs: list[tuple[str, Any]], at: str) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise Refused("a key occurs twice in a tool call or definition", at)
    return values


def as_json(value: Any, at: str) -> str:
    """The JSON text of a definition, arguments or a result.

    Raises:
        Refused: it holds a date, bytes or the like, which columns of Arrow may have and JSON has not.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused("a tool's definition, arguments or result hold what JSON has not", f"in {at}: {error}") from error


def _from_json(text: str, at: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, at))
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise Refused("a tool call or definition is not JSON", f"{at}: {error}") from error
