"""Where configuration files lie: ftkit's own ``conf/`` and the user's ``./conf`` beside it."""

from __future__ import annotations

from pathlib import Path

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

PACKAGE = Path(__file__).resolve().parent.parent


def shipped_conf() -> Path:
    """The ``conf`` folder that came with ftkit: inside an installed wheel, or at the top of a checkout."""
    installed = PACKAGE / "conf"
    return installed if installed.is_dir() else PACKAGE.parent / "conf"


def shipped_environment() -> Path:
    """The ``environment`` folder that came with ftkit, which images are made of."""
    installed = PACKAGE / "environment"
    return installed if installed.is_dir() else PACKAGE.parent / "environment"


def user_conf() -> Path | None:
    """The user's own ``conf`` in the working directory; None when there is none or it is the shipped one."""
    own = Path.cwd() / "conf"
    return own if own.is_dir() and own.resolve() != shipped_conf().resolve() else None


def conf_dirs() -> list[Path]:
    """Folders searched for options; the first that has a file wins."""
    return [folder for folder in (user_conf(), shipped_conf()) if folder]


def groups() -> list[str]:
    """Names of all config groups, the user's own included."""
    return sorted({d.name for root in conf_dirs() for d in root.iterdir() if d.is_dir() and d.name != "hydra"})


def options(group: str) -> list[str]:
    """Names of a group's options."""
    return sorted({f.stem for root in conf_dirs() for f in (root / group).glob("*.yaml")})


def option_file(group: str, option: str) -> Path | None:
    """The file of an option, or None. ``group=""`` means the primary config."""
    candidates = (root / group / f"{option}.yaml" for root in conf_dirs())
    return next((path for path in candidates if path.is_file()), None)


def display(path: Path) -> str:
    """A path as a user would write it: relative to the working directory where it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def headline(path: Path) -> str:
    """First sentence of an option file's header comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.lstrip("# ") for line in lines[:3] if line.startswith("#") and "@package" not in line]
    return comments[0] if comments else ""


def file_that_sets(key: str, choices: dict[str, str]) -> Path | None:
    """The file whose value of ``key`` won, given the chosen option of each group; None when no file sets it."""
    group = key.partition(".")[0]
    late = [("local", choices.get("local@_global_")), ("experiment", choices.get("experiment"))]
    for place, option in late:
        if option and (path := option_file(place, option)) and _sets(path, key.split(".")):
            return path
    primary = option_file("", "config")
    if primary and _sets(primary, key.split(".")):
        return primary
    return _option_that_sets(group, choices.get(group), key.split(".")[1:])


def _option_that_sets(group: str, option: str | None, rest: list[str]) -> Path | None:
    path = option_file(group, option) if option else None
    if path is None or _sets(path, rest):
        return path
    for parent in reversed(_load(path).get("defaults", [])):
        if isinstance(parent, str) and parent != "_self_" and (found := _option_that_sets(group, parent, rest)):
            return found
    return path


def _sets(path: Path, keys: list[str]) -> bool:
    node = _load(path)
    for key in keys:
        if not isinstance(node, dict) or key not in node:
            return False
        node = node[key]
    return bool(keys)


def _load(path: Path) -> dict:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


class UserConfSearchPath(SearchPathPlugin):
    """Puts the user's ``./conf`` before ftkit's own, so that an option of the same name is the user's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if own := user_conf():
            search_path.prepend(provider="user", path=f"file://{own}")


def register_search_path() -> None:
    """Let Hydra find the user's ``./conf``. Call once before composing."""
    Plugins.instance().register(UserConfSearchPath)
