"""The Python scripts of the repository as modules."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType

from helpers.command import REPOSITORY


def load_script(name: str) -> ModuleType:
    """``scripts/<name>``, run as far as an import runs it."""
    loader = SourceFileLoader(f"scripts_{name}", str(REPOSITORY / "scripts" / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module
