"""ftkit as it is released: an sdist, the wheel that is made from it, and that wheel on another Python."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import REPOSITORY, run_ftkit
from packaging.metadata import Metadata
from packaging.specifiers import SpecifierSet

MINORS = range(11, 15)
VERSION = "import sys; print(*sys.version_info[:2], sep='.')"
IMPORT_ALL = """
import importlib, pkgutil, sys, ftkit
optional = ("torch", "trl", "peft", "accelerate", "py3langid", "triton", "httpx", "psutil", "flask", "gunicorn")
optional += ("azure", "lm_eval")
imported = 0
for module in pkgutil.walk_packages(ftkit.__path__, "ftkit."):
    if module.name == "ftkit.serving.local_app" or module.name == "ftkit.serving.plain_app":
        continue  # serve as they are imported
    try:
        importlib.import_module(module.name)
        imported += 1
    except ModuleNotFoundError as error:
        assert str(error.name).split(".")[0] in optional, (module.name, error)
assert imported > 100, imported
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and with the wheel that is made from that."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def metadata_of(released: Path) -> Iterator[Metadata]:
    (sdist,), (wheel,) = released.glob("*.tar.gz"), released.glob("*.whl")
    with tarfile.open(sdist) as packed:
        found = packed.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert found
        yield Metadata.from_email(found.read(), validate=True)
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
        yield Metadata.from_email(packed.read(name), validate=True)


def test_what_is_released_says_what_it_is(released: Path):
    for metadata in metadata_of(released):
        assert metadata.requires_python == SpecifierSet(">=3.11,<3.15")
        assert metadata.description_content_type == "text/markdown" and metadata.license_expression == "MIT"
        assert {"train", "serve", "azure"} <= set(metadata.provides_extra or ())


def test_an_installed_wheel_carries_conf_and_works_from_any_folder(released: Path, tmp_path: Path):
    (wheel,) = released.glob("*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "conf" / "experiment").mkdir(parents=True)
    (elsewhere / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: tiny\n  - override /compute: local\n"
        "  - override /deployment: local\nrun: {name: mine}\n"
    )
    planned = run_ftkit("experiment=mine", "stage=plan", cwd=elsewhere, PYTHONPATH=str(site))
    assert planned.status == 0 and "mine" in planned.out, planned.err
    where = subprocess.run(
        [sys.executable, "-c", "import ftkit; print(ftkit.__file__)"],
        cwd=elsewhere,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(site) in where.stdout
    prepared = run_ftkit("experiment=tiny", "stage=prepare", cwd=elsewhere, PYTHONPATH=str(site))
    assert prepared.status == 0 and "256 rows" in prepared.out, prepared.err


def another_python() -> str | None:
    """The newest Python of those supported that this machine has, beside the one of the tests."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in sorted(MINORS, reverse=True):
        wanted = f"3.{minor}"
        if minor == sys.version_info.minor:
            continue
        for candidate in (f"python{wanted}", *map(str, sorted(pyenv.glob(f"{wanted}.*/bin/python")))):
            try:
                said = subprocess.run([candidate, "-c", VERSION], capture_output=True, text=True, check=False).stdout
            except OSError:
                continue
            if said.strip() == wanted:
                return candidate
    return None


@pytest.fixture(scope="module")
def python(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another Python's environment with the wheel and the pinned versions of what it needs, no extra among them."""
    other = another_python()
    if other is None:
        pytest.skip("this machine has no other Python from 3.11 to 3.14 to try the wheel on")
    folder = tmp_path_factory.mktemp("another-python")
    subprocess.run([other, "-m", "venv", str(folder)], check=True, capture_output=True)
    (wheel,) = released.glob("*.whl")
    pins = ["--constraint", str(REPOSITORY / "environment" / "requirements.txt")]
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile", *pins, str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "bin" / "python"


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    alone = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run([str(python), *arguments], cwd=cwd, env=alone, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_another_python_it_is_imported_plans_and_prepares(python: Path, tmp_path: Path):
    imported = run(python, "-c", IMPORT_ALL, cwd=tmp_path)
    assert imported.returncode == 0, imported.stderr
    planned = run(python, "-m", "ftkit", "stage=plan", "experiment=tiny", "deployment.port=0", cwd=tmp_path)
    assert "trained parameters" in planned.stdout, planned.stderr
    prepared = run(python, "-m", "ftkit", "stage=prepare", "experiment=tiny", cwd=tmp_path)
    assert prepared.returncode == 0 and "256 rows" in prepared.stdout, prepared.stderr
    refused = run(python, "-m", "ftkit", "stage=publish,train", "experiment=tiny", cwd=tmp_path)
    assert refused.returncode == 1 and f"{python} -m pip install '" in refused.stderr, refused.stderr
    assert " 'torch<" in refused.stderr and "ftkit[" not in refused.stderr
