"""Hydra's view of ``conf/``: files of ``experiment/`` and ``local/`` set keys of all groups, without ``# @package``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, ListConfig

from ftkit.config.option_files import GLOBAL, conf_dirs, display, groups
from ftkit.config.yaml_reader import key_lines, package_of, read_yaml
from ftkit.errors import ConfigError, Problem


class ConfSource(FileConfigSource):
    """A folder of option files, ``ftkit:///path/to/conf``."""

    @staticmethod
    def scheme() -> str:
        return "ftkit"

    def load_config(self, config_path: str) -> ConfigResult:
        """Read an option.

        Raises:
            ConfigError: the file cannot be read, or is an experiment that sets nothing.
        """
        path = Path(self.path, self._normalize_file_name(config_path))
        if not path.is_file():
            raise ConfigLoadError(f"Config not found : {path}")
        shown, group = display(path), config_path.partition("/")[0]
        config = read_yaml(path, shown)
        if not config and group != "local" and "/" in config_path:
            raise ConfigError([Problem(group, "the file sets nothing", shown, "save what it should hold")])
        package = package_of(path)
        if group in GLOBAL:
            _check_package(package, group, path)
            package = "_global_"
        _mend_defaults(config, group, path)
        return ConfigResult(
            provider=self.provider, path=f"{self.scheme()}://{self.path}", config=config, header={"package": package}
        )


def _check_package(package: str | None, group: str, path: Path) -> None:
    if package not in (None, "_global_"):
        what = f"# @package {package}, but a file of {group}/ sets keys of all groups"
        raise ConfigError([Problem(group, what, display(path), "take the line out")])


def _mend_defaults(config: DictConfig, group: str, path: Path) -> None:
    """Let an experiment say ``compute: local``, ``/compute: local`` or ``override compute: local`` alike.

    Raises:
        ConfigError: ``defaults`` is not a list.
    """
    defaults = config.get("defaults")
    if defaults is None:
        return
    if not isinstance(defaults, ListConfig):
        line = key_lines(path).get(("defaults",))
        cure = f"defaults: [{defaults}, _self_]" if isinstance(defaults, str) else "defaults: [tiny, _self_]"
        raise ConfigError([Problem("defaults", "is not a list", f"{display(path)}:{line}", cure)])
    if group in GLOBAL:
        config["defaults"] = [_as_override(entry) for entry in defaults]


def _as_override(entry: Any) -> Any:
    if not isinstance(entry, DictConfig) or len(entry) != 1:
        return entry
    ((key, option),) = entry.items()
    name = str(key).removeprefix("override ").strip().lstrip("/")
    return {f"override /{name}": option} if name in groups() and name not in GLOBAL else entry


class ConfSearchPath(SearchPathPlugin):
    """Puts the user's ``./conf`` first, then ftkit's own, so that an option of the same name is the user's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in reversed(conf_dirs()):
            search_path.prepend(provider="ftkit", path=f"{ConfSource.scheme()}://{folder}")


def register_search_path() -> None:
    """Let Hydra read ``conf/`` through ``ConfSource``. Call before composing."""
    Plugins.instance().register(ConfSource)
    Plugins.instance().register(ConfSearchPath)
