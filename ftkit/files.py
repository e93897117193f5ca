"""Writing files so that nothing half-written is ever taken for whole, and reading none that lies outside its folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from ftkit.errors import StageError
from ftkit.processes import runs_since

PARTIAL = re.compile(r"\..+\.(?P<pid>\d+)\.partial", re.DOTALL)
"""Name of what a process is still writing."""
FICLONE = 0x40049409
"""Of Linux, ``linux/fs.h``: have a file share the blocks of another one."""


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target`` to write a file or folder to; it becomes ``target`` when the block ends well.

    An existing target is replaced only then. On an error the half-written one is removed; what a process leaves that
    is killed, ``remove_left_behind`` takes away.

    Raises:
        StageError: the disk is full, or the place cannot be written; names the path and the free space.
    """
    with scratch(target) as aside:
        yield aside
        if aside.is_dir() and target.exists():
            before = _partial(target.with_name(f"{target.name}.before"))
            target.rename(before)
            aside.rename(target)
            _remove(before)
        else:
            aside.replace(target)


@contextmanager
def written_once(target: Path) -> Iterator[Path]:
    """As ``written_aside`` for a folder that must not be there yet.

    Raises:
        FileExistsError: it came to be while the block ran; it is left as it is.
    """
    with scratch(target) as aside:
        yield aside
        try:
            aside.rename(target)  # fails where a folder with files in it has the name
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise _Taken(str(target)) from error
            raise


class _Taken(FileExistsError):
    """Passes through ``scratch`` as it is."""


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """Yield a path beside another one for a file or folder that is removed when the block ends."""
    aside = _partial(beside)
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        _remove(aside)
        yield aside
    except _Taken:
        raise
    except OSError as error:
        raise explained(error, beside) from error
    finally:
        with suppress(OSError):
            _remove(aside)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def remove_left_behind(folder: Path) -> list[Path]:
    """Remove what processes that have ended were still writing below a folder; returns what that was.

    For whoever holds the folder's lock: a process of another machine is not seen.
    """
    found = []
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            if (partial := PARTIAL.fullmatch(name)) and not _being_written(path, int(partial["pid"])):
                found.append(path)
        folders[:] = [name for name in folders if not PARTIAL.fullmatch(name)]
    for path in found:
        with suppress(OSError):
            _remove(path)
    return found


def _being_written(path: Path, pid: int) -> bool:
    """Whether the process that writes it still runs; another one with its number began later."""
    try:
        return runs_since(pid, path.lstat().st_ctime)
    except OSError:
        return False


def explained(error: OSError, path: Path) -> StageError:
    """An operating-system error on writing ``path`` in the user's terms."""
    if isinstance(error, shutil.Error):
        return explained(_first_of(error), path)
    where = str(error.filename or path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StageError(
            f"the disk is full: {free_gib(path):.2f} GiB are free",
            where=where,
            cure="free some space, or run.outputs=<a larger disk>",
        )
    if error.errno == errno.EFBIG:
        if limit := longest_file():
            return StageError(
                f"no file may grow beyond {limit / 2**20:,.1f} MiB here (ulimit -f)",
                where=where,
                cure="ulimit -f unlimited",
            )
        return StageError(
            "the file is too large for this file system", where=where, cure="run.outputs=<a folder on another disk>"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return StageError(f"cannot be written: {error.strerror}", where=where, cure="run.outputs=<a folder of yours>")
    return StageError(f"{error.strerror or error}", where=where)


def _first_of(error: shutil.Error) -> OSError:
    """The first of the errors that shutil has gathered as texts."""
    first = error.args[0]
    while isinstance(first, (list, tuple)) and first and not isinstance(first[-1], str):
        first = first[0]
    text = str(first[-1] if isinstance(first, (list, tuple)) and first else first)
    number = re.search(r"\[Errno (\d+)\]", text)
    target = first[1] if isinstance(first, (list, tuple)) and len(first) == 3 else None
    return OSError(int(number[1]), os.strerror(int(number[1])), str(target)) if number else OSError(text)


def longest_file() -> int:
    """Bytes beyond which this process may let no file grow; 0 for no limit, of which Windows has none."""
    if find_spec("resource") is None:
        return 0
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return 0 if limit == resource.RLIM_INFINITY else limit


def free_gib(path: Path) -> float:
    """Free space in GiB on the disk that holds ``path``, or its nearest existing parent."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free / 2**30


def size_of(folders: Iterable[Path]) -> int:
    """Bytes of the files below folders; one with several names counts once, a link not at all."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for path in (path for folder in folders for path in everything_below(folder)):
        with suppress(OSError):  # it may go at any time
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_size
    return total


def everything_below(folder: Path) -> Iterator[Path]:
    """All that lies below a folder; links are not followed."""
    for root, folders, files in os.walk(folder):
        yield from (Path(root, name) for name in (*folders, *files))


def allocated(folder: Path) -> int:
    """Bytes that a folder's files have on the disk so far: of one that is being written, what has come of it."""
    taken = 0
    for path in everything_below(folder):
        with suppress(OSError):  # renamed meanwhile
            found = path.lstat()
            if stat.S_ISREG(found.st_mode):
                taken += min(found.st_size, getattr(found, "st_blocks", found.st_size) * 512)
    return taken


def size_in_words(size: int) -> str:
    """Bytes as MiB, or as GiB from 1 GiB on."""
    mib = size / 2**20
    return f"{mib / 1024:,.1f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree(folder: Path) -> dict[str, Path]:
    """All files below a folder, by their relative POSIX path, sorted."""
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def tree_digest(
    folder: Path, besides: Collection[str] = (), digests: Callable[[Collection[Path]], Mapping[Path, str]] | None = None
) -> str:
    """One digest for a folder: of its files' relative paths and contents.

    Args:
        besides: relative paths that do not count.
        digests: of files; ``sha256`` of each if not given.
    """
    files = {name: path for name, path in tree(folder).items() if name not in besides}
    found = digests(files.values()) if digests else {path: sha256(path) for path in files.values()}
    return joined_digest({name: found[path] for name, path in files.items()})


def joined_digest(digests: Mapping[str, str]) -> str:
    """The digest of a folder whose files have these, by relative path."""
    ordered = sorted(digests.items(), key=lambda pair: PurePosixPath(pair[0]))
    joined = "\n".join(f"{name} {digest}" for name, digest in ordered)
    return hashlib.sha256(joined.encode()).hexdigest()


def user_path(text: str, key: str) -> Path:
    """A path as a user writes it, ``~`` spelt out.

    Raises:
        StageError: it cannot be one.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        shown = text if len(text) < 200 else f"{text[:100]}… ({len(text):,} characters)"
        why = getattr(error, "strerror", None) or error
        raise StageError(f"is no path: {why}", where=shown, cure=f"{key}=<a path>") from error
    return path


def is_below(name: str) -> bool:
    """Whether a relative path, ``train/adapter`` say, stays in the folder that it is taken in."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def copy_tree(source: Path, target: Path, linked: Collection[str] = ()) -> dict[Path, Path]:
    """Copy a folder's regular files.

    Args:
        linked: suffixes of the files that share their blocks with their source where the file system can do that, or
            else are a second name of it; where neither is possible they are copied like the others.

    Returns:
        The files of ``target`` that share with their source, each with that.

    Raises:
        StageError: a link in it leads out of it.
        OSError: of the first file that cannot be copied.
    """
    check_links(source)
    target.mkdir(parents=True)
    shared = {}
    for name, path in tree(source).items():
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in linked and (_clone(path, copy) or _link(path, copy)):
            shared[copy] = path
        else:
            shutil.copy2(path, copy)
    return shared


def _clone(source: Path, target: Path) -> bool:
    """Make a copy that shares its blocks until one of both is written to, as Btrfs, XFS and ZFS can."""
    if find_spec("fcntl") is None:
        return False
    import fcntl

    with source.open("rb") as there, target.open("xb") as here:
        try:
            fcntl.ioctl(here, FICLONE, there.fileno())
        except OSError:
            pass
        else:
            shutil.copystat(source, target)
            return True
    target.unlink()
    return False


def _link(source: Path, target: Path) -> bool:
    """Make a second name of the file itself, not of a link to it."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        return False
    return True


def check_links(folder: Path) -> None:
    """See that no link in a folder leads out of it: what it leads to would go where the folder goes.

    The hub's cache keeps its files beside its folders, which count as one.

    Raises:
        StageError: one does.
    """
    home = folder.resolve()
    if home.parent.name == "snapshots" and (home.parents[1] / "blobs").is_dir():
        home = home.parents[1]
    for root, folders, files in os.walk(folder):
        for path in (Path(root, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise StageError(
                    f"is a link that leads out of its folder, to {path.resolve()}",
                    where=str(path),
                    cure=f"put the file itself in its place: cp --remove-destination {path.resolve()} {path}",
                )


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, none if it is not there; the last may be cut off where its writer was killed."""
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                return
            if not isinstance(line, dict):
                return
            yield line


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def linked_copy(source: Path, target: Path) -> None:
    """Give a file a second name on the same disk; copy it where that is not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
