"""``docs/reference.md``: every key with its default, what it takes, its meaning, and the file that sets the default.

python -m ftkit.cli.reference > docs/reference.md
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from omegaconf import OmegaConf

from ftkit.cli.help import documented_keys
from ftkit.config.hydra_compose import compose_overrides
from ftkit.config.option_files import groups, headline, option_file, options, place_of_key

HEAD = """# Configuration reference

Made by `python -m ftkit.cli.reference` from the schema and from `conf/`; a test sees that it is up to date.
`python -m ftkit --help sft` shows a group in the terminal. Defaults are those of the composition that runs where
nothing is said; an option of a group sets its own, and `${…}` takes another key's value or an environment variable.
"""


def reference() -> str:
    """The page."""
    composed = compose_overrides([])
    values = OmegaConf.to_container(composed.config, resolve=False)
    sections: dict[str, list[str]] = {}
    for key, takes, meaning in documented_keys():
        section = key.partition(".")[0] if "." in key else ""
        default = _default(values, key)
        source = _file(place_of_key(key, composed.choices, set()) or "") if default else ""
        row = [f"`{key}`", f"`{default}`" if default else "–", takes, meaning, f"`{source}`" if source else "–"]
        sections.setdefault(section, []).append(f"| {' | '.join(map(_cell, row))} |")
    parts = [HEAD]
    for section, rows in sections.items():
        parts.append(f"## {section or 'Of the command'}\n")
        if section in groups():
            parts += [f"* `{section}={name}`: {_headline(section, name)}" for name in options(section)]
            parts.append("")
        parts += ["| key | default | takes | meaning | set in |", "|---|---|---|---|---|", *rows, ""]
    return "\n".join(parts)


def _file(place: str) -> str:
    """A file below ``conf/`` of a place such as ``/somewhere/conf/sft/default.yaml:12``."""
    return "conf/" + place.rpartition("conf/")[2].partition(":")[0]


def _headline(group: str, name: str) -> str:
    path = option_file(group, name)
    return headline(path) if path else ""


def _default(values: Any, key: str) -> str:
    """As one types it; empty where the default composition has no such key."""
    found = reduce(lambda v, k: v.get(k, ...) if isinstance(v, dict) else ..., key.split("."), values)
    if found is ...:
        return ""
    if isinstance(found, bool) or found is None:
        return {True: "true", False: "false", None: "null"}[found]
    if isinstance(found, dict):
        return "{" + ", ".join(f"{name}: {value}" for name, value in found.items()) + "}"
    return str(found) if found != "" else '""'


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    print(reference(), end="")
