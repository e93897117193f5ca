"""What the user reads: one line a stage, problems in a table, errors in three lines."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock, Thread

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ftkit.config.schema import Config
from ftkit.errors import ConfigError, FtkitError, Problem, StageError
from ftkit.files import allocated, size_in_words
from ftkit.translation import said, speak

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, with which a text could command the terminal, and halves of surrogate pairs."""
INDENT = 13
"""Columns that the names of the stages take."""
PLAIN_WIDTH = 200
"""Columns of output that goes to a file or a pipe, so that lines are not broken there."""


def console(stderr: bool = False, plain_width: int = PLAIN_WIDTH) -> Console:
    """A console as wide as the terminal, or of a width of its own when there is none."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, soft_wrap=False, width=None if stream.isatty() else plain_width)


def printable(text: str) -> str:
    """A text that may hold parts of a user's file, with what a terminal must not get spelt out: \\x1b for ESC."""
    return UNPRINTABLE.sub(lambda found: found.group().encode("unicode_escape", "surrogatepass").decode(), text)


COUNT_EVERY_S = 30.0
"""Seconds between two lines of a count where there is no terminal."""
GROWTH_EVERY_S = 0.5
"""Seconds between two looks at a folder that is being written."""
_is_shared = False
"""Whether other runs print on the terminal as well: a line that renews itself would run into theirs."""
PROBLEM_WIDTH = 120
"""Columns below which problems are shown one below the other."""


def agreed(question: str, config: Config, alone: str, cure: str) -> bool:
    """Whether the user agrees: by ``yes=true``, or asked at the terminal.

    Args:
        alone: what is wrong where there is nobody to ask.
        cure: what mends that.

    Raises:
        StageError: there is nobody to ask, and ``yes`` is false.
    """
    if config.yes:
        return True
    if not sys.stdin.isatty():
        raise StageError(alone, cure=cure)
    return input(f"{'':13}{said(question)} [y/N] ").strip().lower() in ("y", "yes")


class Report:
    """Prints the progress of a run, stage by stage.

    Args:
        config: the run's.
        label: begins every line, where several runs print at a time.
    """

    def __init__(self, config: Config, label: str = ""):
        self._console = console()
        self._config = config
        self.label = label
        self._label = f"{label}  " if label else ""
        self._opened = False
        if config.language:
            speak(config.language)
        global _is_shared
        _is_shared = _is_shared or bool(label)

    def line(self, text: str) -> None:
        """Print one indented line as part of the present stage."""
        self.of_job(f"{'':{INDENT}}{printable(said(text))}")

    def of_job(self, text: str) -> None:
        """Print a line of a job's log, which is laid out as ours already: without its colours and other commands."""
        plain = printable(Text.from_ansi(text).plain)
        self._console.print(Text.assemble((self._label, "dim"), plain), soft_wrap=True)

    def skipped(self, stage: str, record: Path) -> None:
        self._open()
        self._print(stage, f"up to date ({record}); force=true runs it again", style="dim")

    def started(self, stage: str) -> None:
        if stage not in ("plan", "report", "clean"):
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
            (self._label, "dim"),
            (f"{stage:<{INDENT}}", "bold"),
            (printable(said(text)), style),
            (f"   {said(tail)}" if tail else "", "dim"),
        )
        self._console.print(line, soft_wrap=True)


def print_of_sweep(number: int, runs: int, label: str) -> None:
    """Say which of a sweep's runs begins, ``2 of 3``."""
    console().print(
        Text.assemble((f"{label}  " if label else "", "dim"), (said(f"{number} of {runs}"), "dim")), soft_wrap=True
    )


@contextmanager
def counting(
    what: str,
    say: Callable[[str], None],
    *,
    shown: Callable[[int], str] = "{:,}".format,
) -> Iterator[Callable[..., None]]:
    """Show how many of something are done: on a terminal in a line that renews itself, elsewhere now and then.

    Args:
        what: is counted: ``rows read``.
        say: prints a line.
        shown: a number in words.

    Yields:
        What is called with how many more are done, and as a second argument with how many more there are to do, where
        that is known; by any thread.
    """
    out, done, total, lock = console(), 0, 0, Lock()

    def told() -> str:
        many = f"{shown(min(done, total))} of {shown(total)}" if total else shown(done)
        return f"{said(many)} {said(what)}"

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    # Without a thread of its own: a process that forks meanwhile must have none.
    silent = _is_shared or not out.is_terminal
    line = Progress(*columns, console=out, transient=True, auto_refresh=False, disable=silent)
    with line:
        task, told_at = line.add_task(told(), total=None), time.monotonic()

        def more(count: int, of: int = 0) -> None:
            nonlocal done, total, told_at
            with lock:
                done, total = done + count, total + of
                line.update(task, description=told(), refresh=True)
                if line.disable and time.monotonic() - told_at > COUNT_EVERY_S:
                    told_at = time.monotonic()
                    say(told())

        yield more


@contextmanager
def growing(folder: Path, total: int, say: Callable[[str], None]) -> Iterator[None]:
    """Show how much of a folder has been written, while a library writes it that does not tell.

    Args:
        folder: may not be there yet.
        total: bytes that it will take.
        say: prints a line.
    """
    ended = Event()
    with counting("written", say, shown=size_in_words) as more:

        def watch() -> None:
            seen = 0
            more(0, total)
            while not ended.wait(GROWTH_EVERY_S):
                now = allocated(folder)
                more(now - seen)
                seen = now

        thread = Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def listing(*headings: str) -> Table:
    """A table of a stage's figures; headings above, cells that wrap rather than end in dots."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def print_listing(table: Table) -> None:
    """Print a table below a stage's line: indented as the lines are where the terminal is wide enough."""
    out = console()
    print_unpadded(out, Padding(table, (0, 0, 0, INDENT if out.width > 80 else 2), expand=False))


def print_unpadded(out: Console, shown: RenderableType) -> None:
    """Print what is laid out in columns without the blanks that fill its lines up."""
    for segments in out.render_lines(shown, pad=False):
        line = Text.assemble(*((segment.text, segment.style or "") for segment in segments))
        line.rstrip()
        out.print(line, soft_wrap=True)


def print_error(error: FtkitError) -> None:
    """Print an error to standard error, without a traceback."""
    out = console(stderr=True)
    if isinstance(error, ConfigError):
        _print_problems(out, error.problems)
        return
    head, *rest = (printable(said(line)) for line in str(error).split("\n"))
    out.print(Text.assemble((said("error  "), "bold red"), head), soft_wrap=True)
    for line in rest:
        out.print(Text(line), soft_wrap=True)


def _print_problems(out: Console, problems: Sequence[Problem]) -> None:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    out.print(Text(said(f"{count} in the configuration; nothing was started.\n")))
    if out.width < PROBLEM_WIDTH:
        for problem in problems:
            out.print(Text(printable(f"  {problem.key}"), style="bold"), soft_wrap=True)
            for line in filter(None, (problem.what, problem.where, problem.cure)):
                print_unpadded(out, Padding(Text(printable(said(line))), (0, 0, 0, 4), expand=False))
        return
    print_unpadded(out, _problem_table(problems))


def _problem_table(problems: Sequence[Problem]) -> Table:
    """Problems as rows: key, what, where, cure."""
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    for _ in range(3):
        table.add_column(overflow="fold")
    for problem in problems:
        cells = map(said, (problem.what, problem.where, problem.cure))
        table.add_row(Text(printable(f"  {problem.key}")), *(Text(printable(cell)) for cell in cells))
    return table
