"""``python -m ftkit`` and ``--help``: stages, groups with their options, keys with meaning and default, examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ftkit import __version__
from ftkit.config.option_files import conf_dirs, display, groups, headline, option_file, options
from ftkit.config.overrides import PLUGINS
from ftkit.config.problems import HIDDEN, all_fields, expected, groups_of
from ftkit.config.stages import BY_NAME, STAGES, Stage
from ftkit.config.words import ON_THE_COMMAND_LINE
from ftkit.console import console, print_unpadded
from ftkit.errors import ConfigError, Problem, nearest
from ftkit.translation import said

EXAMPLES = (
    ("python -m ftkit experiment=tiny stage=all", "the whole life cycle on this machine, in about a minute"),
    ("python -m ftkit stage=plan compute=h100x2 sft.packing=false", "what would run, memory, problems; runs nothing"),
    ("python -m ftkit stage=train compute=h100x2 sft=ddp-safe", "train on two nodes of one H100"),
    ("python -m ftkit experiment=tiny stage=train lora.r=4,8,16 -m", "a sweep: three runs, one after another"),
    ("python -m ftkit experiment=tiny stage=invoke invoke.prompt='7たす5は？'", "ask the model"),
)
READING_WIDTH = 100
"""Columns where there is no terminal."""
FLAGS = (
    ("-m, --multirun", "sweep over comma-separated values: lora.r=4,8,16; each run gets its own folder"),
    ("--cfg job", "print the composed configuration and stop; --package sft prints a part of it"),
    ("--resolved FILE", "run the frozen configuration of an earlier run: outputs/<run>/config.yaml"),
    ("--version", "print the version"),
    ("-sc install=bash", "tab completion: eval \"$(python -m ftkit -sc install=bash)\""),
    ("--hydra-help", "Hydra's own flags"),
)  # fmt: skip


def print_overview() -> None:
    """What a bare ``python -m ftkit`` prints: stages, groups, examples; nothing is started."""
    out = console(plain_width=READING_WIDTH)
    out.print(
        Text(said(f"ftkit {__version__}: fine-tune open reasoning models. Nothing was started.\n")),
        soft_wrap=True,
    )
    out.print(Text("python -m ftkit stage=… [group=option …] [key=value …] [-m]\n", style="bold"))
    _print_stages(out)
    _print_rows(out, said("groups"), [(group, ", ".join(options(group))) for group in groups()])
    _print_examples(out)
    more = "--help lists options and keys; --help sft, lora.r, train … explains a group, key or stage."
    out.print(Text(said(more), "dim"))


def print_help(topics: Sequence[str]) -> None:
    """``--help``, or ``--help <group, key, stage or option>``.

    Raises:
        ConfigError: a topic is none of these.
    """
    if topics:
        for topic in topics:
            _print_topic(topic)
        return
    print_overview()
    out = console(plain_width=READING_WIDTH)
    out.print()
    for group in (*groups(), *PLUGINS):
        _print_options(out, group)
    sections: dict[str, list[str]] = {}
    for key, *_ in documented_keys():
        section, _, name = key.partition(".")
        sections.setdefault(section if name else "", []).append(name or key)
    _print_rows(out, said("keys"), [(section, ", ".join(names)) for section, names in sections.items()])
    _print_rows(out, said("flags"), [(flag, said(does)) for flag, does in FLAGS])
    found = ", ".join(display(folder) for folder in conf_dirs())
    out.print(
        Text(said(f"Options are files in {found}; a folder conf/ where you start ftkit comes first."), style="dim"),
        soft_wrap=True,
    )


def _print_topic(topic: str) -> None:
    name, _, option = topic.partition("=")
    out = console(plain_width=READING_WIDTH)
    words = option.split(",") if name == "stage" and option else [name]
    if all(word in BY_NAME for word in words):
        for word in words:
            _print_stage(out, BY_NAME[word])
        return
    if name in PLUGINS:
        _print_options(out, name)
        return
    rows = [row for row in documented_keys() if row[0] == name or row[0].startswith(name + ".")]
    if not rows and name not in groups():
        known = [key for key, *_ in documented_keys()] + groups() + [stage.name for stage in STAGES]
        close = nearest(name, known)
        cure = f"did you mean --help {close}?" if close else "python -m ftkit --help"
        raise ConfigError([Problem(name, "no such group, key or stage", ON_THE_COMMAND_LINE, cure)])
    if name in groups():
        _print_options(out, name)
    if name == "stage":
        _print_stages(out)
    values = _defaults(name, option or _first_choice(name))
    for key, kind, doc in rows:
        default = _shown(values, key)
        takes = Text.assemble((key, "bold"), "  ", (said(kind), "dim"), (f"  {default}" if default else "", "dim"))
        print_unpadded(out, takes)
        print_unpadded(out, Padding(Text(said(doc)), (0, 0, 0, 4), expand=False))


def _print_stages(out: Console) -> None:
    _print_rows(out, said("stages"), [(stage.name, said(stage.does)) for stage in STAGES if not stage.beside])
    several = "stage=all runs these, and evaluate where a gate needs its figures; stage=prepare,publish runs two.\n"
    out.print(Text(said(several), style="dim"))
    beside = [(stage.name, said(stage.does)) for stage in STAGES if stage.beside]
    _print_rows(out, said("stages beside these"), beside)


def _print_stage(out: Console, stage: Stage) -> None:
    needs = ", ".join(stage.needs) or "nothing"
    keys = [key for key in stage.reads if not key.startswith("-")]
    depends = ", ".join(keys) or said("no key: it runs each time")
    rows = [(said("needs"), needs), (said("depends on"), depends)]
    _print_rows(out, f"{stage.name}: {said(stage.does)}", rows)
    out.print(Text(f"  python -m ftkit stage={stage.name}\n"), soft_wrap=True)


def _first_choice(name: str) -> str:
    """The option of a group that the default composition takes."""
    from ftkit.config.hydra_compose import compose_overrides

    return compose_overrides([]).choices.get(name.partition(".")[0]) or ""


def _defaults(name: str, option: str) -> dict[str, Any]:
    """The default composition with an option of the group that is asked about."""
    from ftkit.config.hydra_compose import compose_overrides

    group = name.partition(".")[0]
    return compose_overrides([f"{group}={option}"] if group in groups() and option in options(group) else []).values


def _shown(values: dict[str, Any], key: str) -> str:
    found = reduce(lambda v, k: v.get(k, ...) if isinstance(v, dict) else ..., key.split("."), values)
    if found is ...:
        return ""
    if isinstance(found, dict):
        return "= {" + ", ".join(f"{k}: {v}" for k, v in found.items()) + "}"
    return "= " + ("null" if found is None else str(found).lower() if isinstance(found, bool) else str(found))


def _print_options(out: Console, group: str) -> None:
    rows = [(f"{group}={name}", said(headline(path))) for name in options(group) if (path := option_file(group, name))]
    _print_rows(out, group, rows)


def documented_keys() -> Iterator[tuple[str, str, str]]:
    """Every key that a user may set, what it takes, and what it means."""
    for key, field in all_fields():
        if key not in HIDDEN and not groups_of(field.annotation):
            yield key, expected(field.annotation), " ".join((field.description or "").split())


def _print_examples(out: Console) -> None:
    """Each command on a line of its own, which no terminal of 80 columns breaks, under what it does."""
    out.print(Text(said("examples"), style="bold"))
    for command, does in EXAMPLES:
        out.print(Text.assemble("  ", (said(does), "dim")))
        out.print(Text(f"    {command}"), soft_wrap=True)
    out.print()


def _print_rows(out: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    out.print(Text(title, style="bold"))
    table = Table(box=None, padding=(0, 2, 0, 2), pad_edge=True, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(Text(name), Text(text))
    print_unpadded(out, table)
    out.print()
