"""What pydantic finds wrong, in the user's words: dotted key, value, what would be right, the nearest name."""

from __future__ import annotations

import re
import types
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ftkit.config.compute import COMPUTES
from ftkit.config.dataset import Dataset, Source
from ftkit.config.fields import PATTERNS
from ftkit.config.methods import METHODS
from ftkit.config.option_files import default_options
from ftkit.config.other_kits import ELSEWHERE, REFUSED, REFUSED_VALUES
from ftkit.config.schema import Config, Job
from ftkit.errors import Problem, nearest

UNKNOWN_KEY, MISSING = "unknown key", "is missing"
PYTHONS_NONE = "None is Python's word, and a text here; YAML's is null"
BASES = {"dataset": "jsonl", "compute": "local", "deployment": "local"}
"""The option that others of a group begin with, where it is not the one that ``conf/config.yaml`` chooses."""
OF_SOURCE = re.compile(r"dataset\.mix\.\w+\.")
"""Begins the keys of a source, which are no keys of the schema."""
HIDDEN = ("job", *(f"job.{name}" for name in Job.model_fields))
"""Keys that ftkit sets for itself."""


def schema_problems(values: dict[str, Any], skip: Sequence[str] = ()) -> tuple[Config | None, list[Problem]]:
    """Validate against the schema.

    Args:
        values: the composed configuration as plain containers.
        skip: dotted keys that are known to be unset and reported elsewhere.

    Returns:
        The typed configuration and no problems, or None and all of them.
    """
    found = [Problem(key, PYTHONS_NONE, "", f"{key}=null") for key in _named_none(values)]
    skip = [*skip, *(problem.key for problem in found)]
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        config = None
        found += _lacking_defaults([_problem(details, values) for details in error.errors(include_url=False)])
    problems = {p.key: p for p in reversed(found) if p.key not in skip or p.what == PYTHONS_NONE}
    return (None if problems else config), list(reversed(problems.values()))


def partly_typed(values: dict[str, Any], faulty: Collection[str]) -> Config:
    """A configuration whose faulty groups cannot be judged: a check that asks for one of them raises NotJudged."""
    fields: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        try:
            if name in faulty:
                raise NotJudged
            kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            fields[name] = TypeAdapter(kind).validate_python(values.get(name, field.default))
        except (NotJudged, ValidationError):
            fields[name] = _Faulty()
    return Config.model_construct(**fields)


class NotJudged(Exception):
    """A group is asked for that has not passed its own validation."""


class _Faulty:
    """Stands for a group that has not passed its own validation."""

    def __getattr__(self, name: str) -> Any:
        raise NotJudged

    def __bool__(self) -> bool:
        raise NotJudged

    def __iter__(self) -> Iterator[Any]:
        raise NotJudged


def _named_none(values: dict[str, Any]) -> Iterator[str]:
    """Keys that may be null and hold the text None."""
    for key, field in all_fields():
        within: Any = values
        for part in key.split("."):
            within = within.get(part) if isinstance(within, dict) else None
        if within == "None" and type(None) in get_args(field.annotation):
            yield key


def _lacking_defaults(problems: list[Problem]) -> list[Problem]:
    """One problem in place of many, for a group's file that does not begin with another option's values."""
    missing = [problem for problem in problems if problem.what == MISSING]
    found = [problem for problem in problems if problem.what != MISSING]
    for group in dict.fromkeys(problem.key.partition(".")[0] for problem in missing):
        keys = [problem.key for problem in missing if problem.key.partition(".")[0] == group]
        first = f"defaults: [{base}, _self_] as the file's first line" if (base := base_of(group)) else f"{keys[0]}=…"
        what = f"{keys[0]} is missing" if len(keys) == 1 else f"{len(keys)} of its keys are missing, {keys[0]} first"
        found.append(Problem(group if len(keys) > 1 else keys[0], what, "", first))
    return found


def base_of(group: str) -> str | None:
    """The option that others of a group begin with."""
    return BASES.get(group) or default_options().get(group)


def all_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema."""
    yield from dict.fromkeys(key for key, _ in all_fields(model, prefix) if key not in HIDDEN)


def all_fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of the schema with its field; a group comes before what is in it.

    Each once, but for one that means something else in another kind of its group.
    """
    for name, field in model.model_fields.items():
        yield prefix + name, field
        below = (found for group in groups_of(field.annotation) for found in all_fields(group, f"{prefix}{name}."))
        yield from {(key, kind.description): (key, kind) for key, kind in below}.values()


def groups_of(annotation: Any) -> list[type[BaseModel]]:
    """The groups that a field may hold: one, one for each platform, or none if it is a value."""
    kinds = get_args(annotation) or (annotation,)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def nearest_key(key: str) -> str | None:
    """The key that was probably meant: by another kit's name, by spelling within the group, then anywhere."""
    group, _, leaf = key.rpartition(".")
    of_source = OF_SOURCE.match(key)
    if not of_source and leaf.lower() in ELSEWHERE and ELSEWHERE[leaf.lower()] != key:
        return ELSEWHERE[leaf.lower()]
    keys = list(all_keys(Source, of_source[0]) if of_source else all_keys())
    siblings = [k for k in keys if k.rpartition(".")[0] == group]
    same_leaf = [k for k in keys if k.rpartition(".")[2] == leaf]
    by_leaf = {k.rpartition(".")[2]: k for k in siblings}
    close = nearest(leaf, by_leaf)
    if same_leaf and not group:  # packing=false
        return same_leaf[0]
    return (by_leaf[close] if close else None) or (same_leaf[0] if same_leaf else None) or nearest(key, keys)


def _problem(details: ErrorDetails, values: dict[str, Any]) -> Problem:
    key, annotation = _field(details["loc"])
    if details["type"] == "extra_forbidden":
        if any("." in str(part) for part in details["loc"]):
            return _flat_key(key, details["input"])
        return _unknown_key(key, values)
    if details["type"] == "missing" and key.startswith("lora."):  # all of them at once, after lora=none
        cure = "lora=experts before other keys of lora, or begin the file with defaults: [experts, _self_]"
        return Problem("lora", "its other keys are missing, as in lora=none", "", cure)
    if details["type"] == "missing":
        return Problem(key, MISSING, "")
    if details["type"].startswith("union_tag"):
        tags, context = tags_of(groups_of(annotation)), details.get("ctx", {})
        tag, told_by = context.get("tag", "null"), context["discriminator"].strip("'")
        return Problem(f"{key}.{told_by}", f"{tag!r} is not one of {', '.join(tags)}", "", f"{key}={base_of(key)}")
    value, wanted = details["input"], expected(annotation, details)
    if found := REFUSED_VALUES.get(key, {}).get(str(value)):
        return Problem(key, f"{value} {found[0]}", "", found[1])
    if isinstance(value, bool) and "true or false" not in wanted and ("text" in wanted or "one of" in wanted):
        return _bare_word(key, value, wanted, choices_of(key))
    what = f"{value!r} is not {wanted}"
    choices = _choices(annotation)
    if isinstance(value, str) and (close := nearest(value, choices)):
        return Problem(key, what, "", f"did you mean {key}={close}?")
    of_a_dictionary = choices and key not in all_keys()
    return Problem(key, what, "", f"for instance {key}={choices[0]}" if of_a_dictionary else "")


def _flat_key(key: str, value: Any) -> Problem:
    """``sft.learning_rate: 1e-4`` in a file."""
    *above, leaf = key.split(".")
    shown = f"{leaf}: {value}"
    for part in reversed(above):
        shown = f"{part}: {{{shown}}}"
    return Problem(key, "a key with a dot in it: in a file each part is a level of its own", "", shown)


def _unknown_key(key: str, values: dict[str, Any]) -> Problem:
    by_leaf = {name.rpartition(".")[2]: said for name, said in REFUSED.items()}
    if refused := REFUSED.get(key) or by_leaf.get(key.rpartition(".")[2]):
        return Problem(key, refused[0], "", refused[1])
    of_source = OF_SOURCE.match(key)
    if of_source and key.removeprefix(of_source[0]) in Dataset.model_fields:
        return Problem(key, "is the same for all sources", "", f"dataset.{key.removeprefix(of_source[0])}=…")
    if key in all_keys() and key.startswith("method."):
        name, leaf = values["method"]["name"], key.partition(".")[2]
        other = next(name for name, kind in METHODS.items() if leaf in kind.model_fields)
        return Problem(
            key, f"a key of method={other}, and the method is {name}", "", f"method={other}, or leave it out"
        )
    if key in all_keys():  # of the same group on another platform
        platform, leaf = values["compute"]["platform"], key.partition(".")[2].partition(".")[0]
        other = next(name for name, kind in COMPUTES.items() if leaf in kind.model_fields)
        what = f"a key of compute on {other}, and compute.platform is {platform}"
        return Problem(key, what, "", f"compute={COMPUTES[other].option}, or leave it out")
    close = nearest_key(key)
    cure = f"did you mean {close}?" if close else f"python -m ftkit --help {key.partition('.')[0]} lists its keys"
    return Problem(key, UNKNOWN_KEY, "", cure if close or "." in key else "python -m ftkit --help lists the keys")


def _bare_word(key: str, value: bool, wanted: str, choices: Sequence[str]) -> Problem:
    """YAML 1.1 takes no, off, yes and on for false and true."""
    words = ("yes", "on", "true") if value else ("no", "off", "false")
    meant = next((word for word in words if word in choices), "")
    what = f"{str(value).lower()}, which YAML makes of a bare {words[0]} or {words[1]}, is not {wanted}"
    return Problem(key, what, "", f'{key}={meant}, or "{meant}" in quotes in a file' if meant else "")


def expected(annotation: Any, details: ErrorDetails | None = None) -> str:
    """What a field takes, in words: an integer above 0, true or false, one of …"""
    if details and details["type"] in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return details["msg"].removeprefix("Input should be ")
    if details and details["type"] == "string_pattern_mismatch":
        return PATTERNS[details.get("ctx", {})["pattern"]]
    origin = get_origin(annotation)
    if origin is Annotated:
        return expected(get_args(annotation)[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if origin in (Union, types.UnionType):
        return " or ".join(expected(a) for a in get_args(annotation))
    if origin is list:
        return "a list"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "a mapping"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return words.get(annotation, str(annotation))


def choices_of(key: str) -> list[str]:
    """The words that a key takes, if it takes nothing else but null, true and false."""
    field = dict(all_fields()).get(key)
    return _choices(field.annotation) if field else []


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)] if get_args(annotation) else []


def _field(location: tuple[int | str, ...]) -> tuple[str, Any]:
    """The dotted key and type of the deepest value on pydantic's path; its union tags are left out."""
    annotation: Any = Config
    path: list[str] = []
    for part in location:
        groups = groups_of(annotation)
        mapping = next((kind for kind in get_args(annotation) if get_origin(kind) is dict), None)
        annotation = mapping if mapping is not None and not groups else annotation
        if part == "[key]":
            break
        if get_origin(annotation) is dict:
            path.append(str(part))
            annotation = get_args(annotation)[1]
        elif get_origin(annotation) is list and isinstance(part, int):
            annotation = get_args(annotation)[0]
        elif len(groups) > 1 and part in tags_of(groups):
            continue
        elif groups:
            path.append(str(part))
            fields = [group.model_fields[str(part)] for group in groups if part in group.model_fields]
            annotation = fields[0].annotation if fields else None
        else:
            break
    return ".".join(path), annotation


def tags_of(groups: Sequence[type[BaseModel]]) -> list[str]:
    """The platforms, or the methods, that the groups of a union are for."""
    fields = [group.model_fields[tag] for group in groups for tag in ("platform", "name") if tag in group.model_fields]
    return [tag for field in fields for tag in get_args(field.annotation)]
