"""stage=clean: list what runs, checkpoints and registered versions take of this disk; remove what is asked for.

python -m ftkit stage=clean
python -m ftkit stage=clean clean.runs=[tiny-lora.r=4] clean.checkpoints=true clean.versions=unused
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ftkit.config.schema import Config
from ftkit.console import agreed, listing, print_listing
from ftkit.errors import StageError, nearest
from ftkit.files import size_in_words, size_of
from ftkit.pipeline.stage import Context, Made
from ftkit.platforms.local import disk
from ftkit.platforms.local.disk import Disk, Kept
from ftkit.reports.index import write_index
from ftkit.translation import said


@dataclass(frozen=True)
class Removal:
    """Something to remove.

    Attributes:
        what: in words.
        bytes: that it frees.
        do: removes it.
    """

    what: str
    bytes: int
    do: Callable[[], None]


def run(context: Context) -> Made:
    """Print the table; remove what ``clean`` names, after asking.

    Raises:
        StageError: what is named is not there, or something that stays needs it; nothing has been removed then. Or
            there is nobody to ask.
    """
    config, outputs = context.config, Path(context.config.run.outputs)
    found = Disk(outputs)
    _print_table(found)
    removals = list(_asked_for(config, found))
    total = size_of([outputs])
    if not removals:
        return Made(f"{size_in_words(total)} in {outputs}; {_hint(config, found)}")
    for each in removals:
        context.say(f"to remove: {each.what}, {size_in_words(each.bytes)}")
    if not agreed(
        "Remove it?", config, "clean asks before it removes anything, and nobody is there to ask", "yes=true"
    ):
        return Made("left as it is")
    for each in removals:
        each.do()
    write_index(outputs)
    freed = max(0, total - size_of([outputs]))
    return Made(f"freed {size_in_words(freed)}; {size_in_words(total - freed)} are left in {outputs}")


def _print_table(found: Disk) -> None:
    table = listing(*map(said, ("what", "takes", "its checkpoints", "needed by")))
    rows = [(kept, found.needs_run(name)) for name, kept in found.runs.items()]
    rows += [(kept, found.needs_version(kept)) for same in found.versions.values() for kept in same]
    words = {"run": "run", "data": "data", "models": "model"}
    for kept, needs in rows:
        checkpoints = size_in_words(kept.checkpoints) if kept.checkpoints else ""
        table.add_row(f"{words[kept.kind]} {kept.name}", size_in_words(kept.bytes), checkpoints, "; ".join(needs))
    if rows:
        print_listing(table)


def _asked_for(config: Config, found: Disk) -> Iterator[Removal]:
    asked = config.clean
    runs = list(dict.fromkeys(asked.runs or ()))
    for name in runs:
        run = found.runs[_known(name, found.runs, "run", "clean.runs")]
        _refuse_needed(f"run {name}", found.needs_run(name, runs))
        yield Removal(f"run {name}", run.bytes, lambda run=run: disk.remove_run(run))
    if asked.checkpoints:
        for name, run in found.runs.items():
            if name not in runs and found.has_spare_checkpoints(name):
                yield Removal(f"checkpoints of run {name}", run.checkpoints, lambda r=run: disk.remove_checkpoints(r))
    for version in _versions(config, found, runs):
        yield Removal(f"{version.kind} {version.name}", version.bytes, lambda v=version: disk.remove_version(v))


def _versions(config: Config, found: Disk, runs: Collection[str]) -> Iterator[Kept]:
    asked = config.clean.versions
    if asked == "unused":
        yield from (v for same in found.versions.values() for v in same if not found.needs_version(v, runs))
        return
    for id in dict.fromkeys(asked or ()):
        for version in found.versions[_known(id, found.versions, "version", "clean.versions")]:
            _refuse_needed(f"{version.kind} {id}", found.needs_version(version, runs))
            yield version


def _known(name: str, there: Collection[str], what: str, key: str) -> str:
    if name in there:
        return name
    close = nearest(name, there)
    cure = f"{key}=[{close}]" if close else f"there are {', '.join(there) or 'none'}"
    raise StageError(f"there is no {what} {name}, and nothing was removed", cure=cure)


def _refuse_needed(what: str, needs: list[str]) -> None:
    if needs:
        raise StageError(
            f"{what} is still needed, and nothing was removed: {'; '.join(needs)}",
            cure="remove that with it, stop it with stage=teardown, or leave this as it is",
        )


def _hint(config: Config, found: Disk) -> str:
    """What could be freed, and how."""
    spare = sum(run.checkpoints for name, run in found.runs.items() if found.has_spare_checkpoints(name))
    unused = sum(v.bytes for same in found.versions.values() for v in same if not found.needs_version(v))
    ways = [f"clean.checkpoints=true frees {size_in_words(spare)}"] if spare else []
    ways += [f"clean.versions=unused frees {size_in_words(unused)}"] if unused else []
    ways += ["clean.runs=[…] removes runs"] if found.runs else []
    asked = config.clean.checkpoints or config.clean.runs or config.clean.versions
    return "; ".join([*(["nothing of it is to spare"] if asked else []), *ways]) or "nothing to remove"
