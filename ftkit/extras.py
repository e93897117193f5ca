"""The optional packages: which of ftkit's extras brings what, and what to say when it is missing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from ftkit.errors import StageError


def require(extra: str, modules: Sequence[str], what: str) -> None:
    """Check that modules can be imported, without importing them.

    Args:
        extra: of ftkit, that brings them.
        modules: by dotted name.
        what: needs them: ``training``.

    Raises:
        StageError: one is missing; names the command that installs it.
    """
    if missing := [name for name in modules if not _is_there(name)]:
        raise StageError(
            f"{what} needs {', '.join(missing)}, which is not installed", cure=f"pip install 'ftkit[{extra}]'"
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
