"""What the user reads: one line a stage, problems in a table, errors in three lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ftkit.config.schema import Config
from ftkit.errors import ConfigError, FtkitError, Problem

PLAIN_WIDTH = 200
"""Columns of output that goes to a file or a pipe, so that lines are not broken there."""


def console(stderr: bool = False) -> Console:
    """A console as wide as the terminal, or wide enough for whole lines when there is none."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, soft_wrap=False, width=None if stream.isatty() else PLAIN_WIDTH)


class Report:
    """Prints the progress of a run, stage by stage.

    Args:
        config: the run's.
        label: begins every line, where several runs print at a time.
    """

    def __init__(self, config: Config, label: str = ""):
        self._console = console()
        self._config = config
        self._label = f"{label}  " if label else ""
        self._opened = False

    def line(self, text: str) -> None:
        """Print one indented line as part of the present stage."""
        self.of_job(f"{'':13}{text}")

    def of_job(self, text: str) -> None:
        """Print a line of a job's log, which is laid out as ours already."""
        self._console.print(Text.assemble((self._label, "dim"), text), soft_wrap=True)

    def skipped(self, stage: str, record: Path) -> None:
        self._open()
        self._print(stage, f"up to date ({record}); force=true runs it again", style="dim")

    def started(self, stage: str) -> None:
        if stage not in ("plan", "report"):
            self._open()

    def finished(self, stage: str, summary: str, seconds: float) -> None:
        if summary:
            self._print(stage, summary, f"{seconds:.1f} s")

    def _open(self) -> None:
        if not self._opened:
            self._console.print(
                Text.assemble(
                    (f"{self._label}run  ", "dim"),
                    (self._config.run.name, "bold"),
                    f"   {self._config.run.outputs}/{self._config.run.name}",
                )
            )
        self._opened = True

    def _print(self, stage: str, text: str, tail: str = "", style: str = "") -> None:
        line = Text.assemble(
            (self._label, "dim"), (f"{stage:<13}", "bold"), (text, style), (f"   {tail}" if tail else "", "dim")
        )
        self._console.print(line, soft_wrap=True)


def print_error(error: FtkitError) -> None:
    """Print an error to standard error, without a traceback."""
    out = console(stderr=True)
    if isinstance(error, ConfigError):
        _print_problems(out, error.problems)
        return
    head, *rest = str(error).splitlines()
    out.print(Text.assemble(("error  ", "bold red"), head), soft_wrap=True)
    for line in rest:
        out.print(Text(line), soft_wrap=True)


def _print_problems(out: Console, problems: Sequence[Problem]) -> None:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    out.print(Text(f"{count} in the configuration; nothing was started.\n"))
    out.print(problem_table(problems))


def problem_table(problems: Sequence[Problem]) -> Table:
    """Problems as rows: key, what, where, cure."""
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    for _ in range(3):
        table.add_column(overflow="fold")
    for problem in problems:
        table.add_row(Text(f"  {problem.key}"), Text(problem.what), Text(problem.where), Text(problem.cure))
    return table
