"""The command line: what it prints without arguments, help, completion, frozen configurations, import discipline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command import REPOSITORY, on_terminal, run_ftkit
from rich.cells import cell_len

from ftkit import processes
from ftkit.config.schema import STAGES
from ftkit.config.sources import groups, options
from ftkit.help import EXAMPLES

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "azure", "accelerate")


def test_bare_command_lists_stages_and_groups_and_starts_nothing(ftkit, tmp_path: Path):
    done = ftkit()
    assert done.status == 0
    assert all(stage in done.out for stage in STAGES) and all(group in done.out for group in groups())
    assert list(tmp_path.iterdir()) == []


def test_help_shows_every_option_and_five_examples(ftkit):
    out = ftkit("--help").out
    assert all(f"{group}={option}" in out for group in groups() for option in options(group))
    assert out.count("python -m ftkit ") >= 5


@pytest.mark.parametrize("columns", [80, 100])
def test_help_fits_a_terminal_and_cuts_nothing_off(columns: int):
    out = on_terminal("--help", columns=columns) + on_terminal("--help", "deployment", columns=columns)
    assert all(command in out and does in out for command, does in EXAMPLES)
    assert "deployment.max_concurrent_requests_per_instance" in out
    assert max(cell_len(line) for line in out.splitlines()) <= columns


def test_help_of_a_group_documents_its_keys(ftkit):
    out = ftkit("--help", "sft").out
    assert "sft.gradient_accumulation_steps" in out and "before one optimiser step" in out
    assert ftkit("--help", "stf").err.count("did you mean --help sft?") == 1


def test_cfg_job_prints_the_composed_configuration(ftkit):
    out = ftkit("experiment=tiny", "lora.r=4", "--cfg", "job").out
    assert "name: tiny" in out and "r: 4" in out


@pytest.mark.parametrize("arguments", [["stage=plan"], ["--help"], []])
def test_planning_and_help_import_nothing_heavy(arguments: list[str], tmp_path: Path):
    code = f"""
import sys
sys.argv[1:] = {arguments!r}
from ftkit.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = sorted(name for name in {HEAVY!r} if name in sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plan_shows_the_arithmetic(ftkit):
    out = ftkit("stage=plan", "compute=h100x2", "sft.packing=false").out
    assert "2 processes × 1 row × 16 accumulated = 32 rows a step" in out
    assert "92,454,912 trained parameters" in out and "20,914,757,184" in out
    assert "of 94 GiB a GPU" in out and "2 × Standard_NC40ads_H100_v5" in out
    assert out.rstrip().endswith("no problems")


def test_plan_says_what_would_fit_when_it_does_not(ftkit):
    out = ftkit("stage=plan", "sft.gradient_checkpointing=false", "sft.max_length=65536").out
    assert "will not fit in 94 GiB" in out and "sft.gradient_checkpointing=true: " in out and "fits" in out


def test_a_job_for_azure_without_a_workspace_starts_nothing(ftkit, tmp_path: Path):
    unset = dict.fromkeys(("SUBSCRIPTION_ID", "RESOURCE_GROUP", "WORKSPACE_NAME"), "")
    done = ftkit("stage=train", "compute=h100x2", "sft.packing=false", **unset)
    assert done.status == 2 and "SUBSCRIPTION_ID" in done.err
    assert not (tmp_path / "outputs").exists()


def test_a_frozen_configuration_runs_again_and_nothing_of_it_can_be_changed(ftkit, tmp_path: Path):
    assert ftkit("experiment=tiny", "stage=prepare", "dataset.max_rows=20").status == 0
    frozen = "outputs/tiny/config.yaml"
    again = ftkit("--resolved", frozen, "stage=prepare")
    assert again.status == 0 and "up to date" in again.out
    assert ftkit("--resolved", frozen, "stage=prepare", "lora.r=4").status == 2
    assert ftkit("--resolved", "nowhere.yaml", "stage=prepare").status == 2
    (tmp_path / frozen).write_text("stage: prepare\n")
    assert "is missing" in ftkit("--resolved", frozen, "stage=prepare").err


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("python -m ftkit compute=h", "compute=h100x2"),
        ("ftkit stage=tr", "stage=train"),
        ("ftkit sft.max", "sft.max_length="),
        ("python -m ftkit experiment=", "experiment=tiny"),
    ],
)
def test_tab_completion_in_a_real_bash(line: str, offers: str, tmp_path: Path):
    folder = Path(sys.executable).parent
    script = f"""
PATH={folder}:$PATH
eval "$(python -m ftkit -sc install=bash)"
COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=($COMP_LINE)
_ftkit_complete; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert offers in done.stdout.split(), done.stderr


def test_an_installed_wheel_carries_conf_and_works_from_any_folder(tmp_path: Path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
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


@pytest.mark.parametrize(("arguments", "status"), [(["--version"], 0), (["stage=trian"], 2)])
def test_one_of_several_processes_keeps_its_status_when_it_crashes_as_it_ends(
    ftkit, tmp_path: Path, arguments: list[str], status: int
):
    """Guard: end_now in __main__."""
    (tmp_path / "sitecustomize.py").write_text("import atexit, os; atexit.register(os.abort)")
    crashing = {"PYTHONPATH": str(tmp_path), "RANK": "1", "WORLD_SIZE": "2"}
    assert ftkit(*arguments, **crashing).status == status


def test_processes_on_one_machine_share_out_its_cores(monkeypatch: pytest.MonkeyPatch):
    """Guard: threads_each; torchrun would give each process one thread."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes, "usable_cores", lambda: 16)
    assert [processes.threads_each(n)["OMP_NUM_THREADS"] for n in (1, 2, 32)] == ["16", "8", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert processes.threads_each(2)["OMP_NUM_THREADS"] == "3"
