"""``python -m ftkit`` and ``--help``: stages, groups with their options, keys with what they do, examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ftkit import __version__
from ftkit.config.overrides import nearest
from ftkit.config.problems import expected, group_of
from ftkit.config.schema import Config
from ftkit.config.sources import conf_dirs, display, groups, headline, option_file, options
from ftkit.console import console
from ftkit.errors import ConfigError, Problem
from ftkit.stages import STAGES

EXAMPLES = (
    ("python -m ftkit experiment=tiny stage=all", "the whole life cycle on this machine, in about a minute"),
    ("python -m ftkit stage=plan compute=h100x2 sft.packing=false", "what would run, memory, problems; runs nothing"),
    ("python -m ftkit stage=train compute=h100x2 sft=ddp-safe", "train on two nodes of one H100"),
    ("python -m ftkit experiment=tiny stage=train lora.r=4,8,16 -m", "a sweep: three runs side by side"),
    ("python -m ftkit experiment=tiny stage=invoke invoke.prompt='7たす5は？'", "ask the model"),
)


def print_overview() -> None:
    """What a bare ``python -m ftkit`` prints: stages, groups, examples; nothing is started."""
    out = console()
    out.print(
        Text(f"ftkit {__version__}: fine-tune gpt-oss from one tree of YAML. Nothing was started.\n"), soft_wrap=True
    )
    out.print(Text("python -m ftkit stage=… [group=option …] [key=value …] [-m]\n", style="bold"))
    _print_rows(out, "stages", [(stage.name, stage.does) for stage in STAGES])
    several = "stage=all runs the first eight, and evaluate where a gate needs it; stage=prepare,publish runs two.\n"
    out.print(Text(several, style="dim"))
    _print_rows(out, "groups", [(group, ", ".join(options(group))) for group in groups()])
    _print_examples(out)
    out.print(Text("--help says more; --help sft (or any group or option) lists its keys.", style="dim"))


def print_help(topics: Sequence[str]) -> None:
    """``--help``, or ``--help <group or key>``.

    Raises:
        ConfigError: a topic is neither a group nor a key.
    """
    if topics:
        for topic in topics:
            _print_topic(topic)
        return
    print_overview()
    out = console()
    out.print()
    for group in groups():
        rows = [(f"{group}={name}", headline(path)) for name in options(group) if (path := option_file(group, name))]
        _print_rows(out, group, rows)
    flags = (
        ("-m, --multirun", "sweep over comma-separated values: lora.r=4,8,16; each gets a folder of its own"),
        ("--cfg job", "print the composed configuration and stop"),
        ("--resolved FILE", "run the frozen configuration of an earlier run: outputs/<run>/config.yaml"),
        ("--version", "print the version"),
        ("--hydra-help", "Hydra's own flags; -sc install=bash sets up tab completion"),
    )
    _print_rows(out, "flags", flags)
    found = ", ".join(display(folder) for folder in conf_dirs())
    out.print(
        Text(f"Options are files in {found}; a folder conf/ where you start ftkit comes first.", style="dim"),
        soft_wrap=True,
    )


def _print_topic(topic: str) -> None:
    topic = topic.partition("=")[0]
    rows = [row for row in _keys(Config) if row[0] == topic or row[0].startswith(topic + ".")]
    if not rows and topic not in groups():
        names = [key for key, *_ in _keys(Config)] + groups()
        close = nearest(topic, names)
        raise ConfigError(
            [Problem(topic, "no such group or key", "", f"did you mean --help {close}?" if close else "")]
        )
    out = console()
    if topic in groups():
        named = [(name, headline(path)) for name in options(topic) if (path := option_file(topic, name))]
        _print_rows(out, topic, named)
    for key, kind, doc in rows:
        out.print(Text.assemble((key, "bold"), "  ", (kind, "dim")))
        out.print(Padding(Text(doc), (0, 0, 0, 4), expand=False))


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        if group := group_of(field.annotation):
            yield from _keys(group, f"{prefix}{name}.")
        else:
            yield prefix + name, expected(field.annotation), " ".join((field.description or "").split())


def _print_examples(out: Console) -> None:
    """Each command on a line of its own, which no terminal of 80 columns breaks, under what it does."""
    out.print(Text("examples", style="bold"))
    for command, does in EXAMPLES:
        out.print(Text.assemble("  ", (does, "dim")))
        out.print(Text(f"    {command}"), soft_wrap=True)
    out.print()


def _print_rows(out: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    out.print(Text(title, style="bold"))
    table = Table(box=None, padding=(0, 2, 0, 2), pad_edge=True, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(Text(name), Text(text))
    out.print(table)
    out.print()
