"""Tool definitions (JSON Schema) as the TypeScript that Harmony's developer block holds.

The text is that of the library openai-harmony, through which vLLM serves gpt-oss. gpt-oss's own chat template writes
the same for plain parameters, and other text for nested objects, ``oneOf``, examples and titles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

NAMESPACE = "functions"
"""Where a user's tools live; a call goes to ``functions.<name>``."""

_EXPONENT = re.compile(r"e\+?(-?)0*(\d+)$")
_PLAIN = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}


def tool_namespace(tools: Sequence[Mapping[str, Any]]) -> str:
    """The section ``# Tools`` of the developer block.

    Args:
        tools: functions with ``name``, and mostly ``description`` and ``parameters``, a JSON Schema.
    """
    body = "".join(f"{_function(tool)}\n\n" for tool in tools)
    return f"# Tools\n\n## {NAMESPACE}\n\nnamespace {NAMESPACE} {{\n\n{body}}} // namespace {NAMESPACE}"


def _function(tool: Mapping[str, Any]) -> str:
    lines = re.split(r"\r?\n", tool.get("description") or "")
    comment = "".join(f"// {line}\n" for line in (lines if lines[-1] else lines[:-1]))
    parameters = tool.get("parameters")
    given = "" if parameters is None else f"_: {_type(parameters, '')}"
    return f"{comment}type {tool['name']} = ({given}) => any;"


def _type(schema: Any, indent: str) -> str:
    """The type of a value; what JSON Schema says beyond that is left out, as openai-harmony does."""
    if not isinstance(schema, dict):
        return "any"
    if isinstance(variants := schema.get("oneOf"), list):
        return "".join(f"\n{indent} | {_variant(v, indent)}{_remark(v, quoted=True)}" for v in variants)
    kind = schema.get("type")
    if isinstance(kind, list) and (names := [name for name in kind if isinstance(name, str)]):
        return " | ".join("number" if name == "integer" else name for name in names)
    if kind == "object":
        return _object(schema, indent)
    if kind == "array":
        return f"{_type(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    if kind == "string" and (values := [v for v in _enum(schema) if isinstance(v, str)]):
        return " | ".join(f'"{value}"' for value in values)
    return _PLAIN.get(kind, "any") if isinstance(kind, str) else "any"


def _object(schema: Mapping[str, Any], indent: str) -> str:
    description, properties = _text(schema, "description"), schema.get("properties")
    opening = "" if description is None else f"{indent}// {description}\n"
    required = schema.get("required")
    inside = "".join(
        _property(name, value, indent, optional=not isinstance(required, list) or name not in required)
        for name, value in (properties.items() if isinstance(properties, dict) else ())
    )
    return f"{opening}{{\n{inside}{indent}}}"


def _property(name: str, given: Any, indent: str, *, optional: bool) -> str:
    schema = given if isinstance(given, dict) else {}
    variants = schema.get("oneOf")
    mark = "?" if optional else ""
    comments = "".join(f"{indent}{line}\n" for line in _comments(schema))
    if not isinstance(variants, list):
        default = f" // {_default(schema)}" if "default" in schema else ""
        return f"{comments}{indent}{name}{mark}: {_nullable(schema, f'{indent}    ')},{default}\n"
    said = _text(schema, "description")
    lines = ""
    for i, variant in enumerate(variants):
        told = said is not None and (i == 0 or _text(variant, "description") == said)
        lines += f"{indent} | {_variant(variant, indent)}{_remark(variant, described=not told)}\n"
    return f"{comments}{indent}{name}{mark}:\n{lines}{indent},\n"


def _variant(schema: Any, indent: str) -> str:
    return _nullable(schema, f"{indent}   ")


def _nullable(schema: Any, indent: str) -> str:
    kind = _type(schema, indent)
    null = isinstance(schema, dict) and schema.get("nullable") is True and "null" not in kind
    return f"{kind} | null" if null else kind


def _comments(schema: Mapping[str, Any]) -> Iterator[str]:
    """Lines above a property: title, description, examples, and the default where the type takes several lines."""
    description, examples = _text(schema, "description"), schema.get("examples")
    several = schema.get("oneOf")
    if (title := _text(schema, "title")) is not None:
        yield f"// {title}"
        yield "//"
    first = several[0] if isinstance(several, list) and several else None
    if description is not None and _text(first, "description") != description:
        yield f"// {description}"
    if isinstance(examples, list) and examples:
        yield "// Examples:"
        yield from (f'// - "{example}"' for example in examples if isinstance(example, str))
    if isinstance(several, list) and "default" in schema:
        yield f"// {_default(schema)}"


def _remark(variant: Any, *, described: bool = True, quoted: bool = False) -> str:
    """The comment behind one of several types.

    Args:
        described: it holds the description.
        quoted: the default of an enum is written as JSON.
    """
    description = _text(variant, "description") if described else None
    default = _default(variant, quoted=quoted) if isinstance(variant, dict) and "default" in variant else None
    said = [text for text in (description, default) if text is not None]
    return f" // {' '.join(said)}" if said else ""


def _default(schema: Mapping[str, Any], *, quoted: bool = False) -> str:
    value = schema["default"]
    if isinstance(value, str) and not (quoted and _enum(schema)):
        return f"default: {value}" if _enum(schema) else f'default: "{value}"'
    return f"default: {_json(value)}"


def _json(value: Any) -> str:
    """Compact JSON with numbers as Rust's serde_json writes them: ``1e30``, ``1e-7``, ``0.00001``."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k, ensure_ascii=False)}:{_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        value = float(value)
    written = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, float):
        return written
    return f"{Decimal(written):f}" if written.endswith("e-05") else _EXPONENT.sub(r"e\1\2", written)


def _enum(schema: Mapping[str, Any]) -> list[Any]:
    values = schema.get("enum")
    return values if isinstance(values, list) else []


def _text(schema: Any, key: str) -> str | None:
    value = schema.get(key) if isinstance(schema, dict) else None
    return value if isinstance(value, str) else None
