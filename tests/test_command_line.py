"""The command line: what it prints without arguments, help, completion, frozen configurations, import discipline."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import REPOSITORY, on_terminal
from rich.cells import cell_len

from ftkit import processes
from ftkit.cli.help import EXAMPLES
from ftkit.config.option_files import groups, options
from ftkit.config.resolve import resolve
from ftkit.config.stages import LIFE_CYCLE
from ftkit.errors import ConfigError, Problem, StageError

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "azure", "accelerate")


def test_bare_command_lists_stages_and_groups_and_starts_nothing(ftkit, tmp_path: Path):
    done = ftkit()
    assert done.status == 0
    assert all(stage in done.out for stage in LIFE_CYCLE) and all(group in done.out for group in groups())
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


@pytest.mark.parametrize("arguments", [["--help"], ["--help", "sft"], ["experiment=tiny", "stage=plan"], ["lora.r=x"]])
def test_no_line_ends_in_blanks(ftkit, arguments: list[str]):
    """Guard: console.print_unpadded."""
    done = ftkit(*arguments)
    lines = (done.out + done.err).splitlines()
    assert lines and [line for line in lines if line != line.rstrip()] == []


def test_help_of_a_group_documents_its_keys(ftkit):
    out = ftkit("--help", "sft").out
    assert "sft.gradient_accumulation_steps" in out and "before one optimiser step" in out
    assert ftkit("--help", "stf").err.count("did you mean --help sft?") == 1


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["-m", "--cfg", "job"]])
def test_cfg_job_prints_the_composed_configuration(ftkit, flags: list[str]):
    done = ftkit("experiment=tiny", "lora.r=4", *flags)
    assert done.status == 0 and "name: tiny" in done.out and "r: 4" in done.out, done


def test_completion_for_another_shell_than_bash_is_refused_in_words(ftkit):
    done = ftkit("-sc", "install=powershell")
    assert done.status == 2 and "tab completion for bash alone" in done.err and "-sc install=bash" in done.err, done


def test_output_that_knows_ascii_alone_ends_nothing(ftkit):
    """Guard: errors="replace" in __main__."""
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = ftkit("experiment=tiny", "stage=prepare,plan", **ascii_alone)
    assert done.status == 0 and "256 rows" in done.out and "1 process ? 16 rows" in done.out, done


def test_a_python_without_the_packages_says_which_and_what_brings_them():
    command = [sys.executable, "-S", "-m", "ftkit", "experiment=tiny"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "which this Python lacks; scripts/setup, then: .venv/bin/python" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_table_of_versions_can_be_read_in_a_narrow_terminal(in_empty_folder: Path):
    out = on_terminal("experiment=tiny", "stage=environment", columns=80)
    table = out[out.index("package") :].partition("environment")[0].splitlines()
    assert len(table) > 15 and "…" not in out and max(map(cell_len, table)) <= 80


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


def test_a_training_does_not_import_wandb(tmp_path: Path):
    """TRL does wherever it is installed, as it is here: three seconds of every training's start."""
    code = """
import importlib.util, sys
from types import SimpleNamespace
from ftkit.training.methods import method_of
method_of(SimpleNamespace(method=SimpleNamespace(name="sft")))
assert importlib.util.find_spec("wandb") and "wandb" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plan_shows_the_arithmetic(ftkit):
    out = ftkit("stage=plan", "compute=h100x2", "sft.packing=false").out
    assert "2 processes × 2 rows × 8 accumulated = 32 rows a step" in out
    assert "chosen       2 rows at a time, no layer recomputed, dense weights" in out and "; next best " in out
    assert "tokens/s predicted for 2 × H100 NVL" in out
    assert "; with model.products=fp8, which rounds tokens and gradients, " in out
    assert "; with model.products=fp8_all, which rounds weights too, " in out
    assert "92,454,912 trained parameters" in out and "20,914,757,184" in out
    assert "of 94 GiB a GPU" in out and "2 × Standard_NC40ads_H100_v5" in out
    assert out.rstrip().endswith("no problems")
    for model in ("qwen3-30b-a3b", "qwen3-8b"):
        out = ftkit("stage=plan", "compute=h100x2", f"model={model}").out
        assert "; with model.products=fp8_all, which rounds weights too, " in out and "products=fp8," not in out
    assert "products=fp8" not in ftkit("stage=plan", "compute=h100x2", "model=olmo-2-1b").out


def test_rows_that_are_not_packed_are_planned_by_their_lengths_once_prepared(ftkit):
    gpu = ("experiment=tiny", "compute.gib_per_gpu=24", "sft.bf16=true", "model.dtype=bfloat16", "sft.packing=false")
    kernels = ("model.attn_implementation=ftkit_sinks", "model.experts_implementation=ftkit_lora")
    rows = "sft.per_device_train_batch_size=16"

    def memory(tokens: int) -> str:
        out = ftkit("stage=plan", *gpu, *kernels, rows, f"sft.max_length={tokens}").out
        assert f"packing off: rows end to end, of at most {tokens:,} tokens" in out
        return next(line for line in out.splitlines() if line.startswith("memory"))

    before = memory(2048)
    assert ftkit("stage=prepare", "experiment=tiny").status == 0
    assert "activations 0.4" in before and "activations 0.0" in memory(2048) == memory(162)


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


@pytest.mark.parametrize(("given", "policy"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_threads_of_a_command_sleep_while_they_wait_unless_the_user_says_otherwise(given: dict[str, str], policy: str):
    """Guard: wait_passively, before torch is imported."""
    code = """
import os, sys
sys.argv[1:] = ["--version"]
from ftkit.__main__ import main
try:
    main()
finally:
    assert "torch" not in sys.modules
    print(os.environ["OMP_WAIT_POLICY"])
"""
    unset = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], env=unset | given, capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1] == policy, done.stderr


HOSTILE, HARMLESS = "a\x1b]52;c;aGk=\x07\x9b\udc83", "a\\x1b]52;c;aGk=\\x07\\x9b\\udc83"
"""OSC 52 writes to the clipboard."""


@pytest.mark.parametrize("width", [80, 200])
def test_what_a_file_says_never_commands_the_terminal(width: int, monkeypatch):
    """Guards: printable in console and in Labelled."""
    from rich.console import Console

    from ftkit import console
    from ftkit.stages.invoke import Labelled

    out = io.StringIO()
    assert console.printable(f"{HOSTILE}\nb\tc 日本") == f"{HARMLESS}\nb\tc 日本"
    monkeypatch.setattr(console, "console", lambda *_, **__: Console(file=out, width=width))
    report = console.Report(resolve(["experiment=tiny"]))
    report.line(HOSTILE)
    report.finished("prepare", HOSTILE, 1.0)
    console.print_error(StageError(HOSTILE, where=HOSTILE, cure=HOSTILE))
    console.print_error(ConfigError([Problem(HOSTILE, HOSTILE, HOSTILE, HOSTILE)]))
    Labelled(console.console()).add("output", HOSTILE)
    assert out.getvalue().count(HARMLESS) == 10
    report.of_job(f"  13 \x1b[31mstep\x1b[0m {HOSTILE} \x1b[2Jend")
    assert "  13 step a" in out.getvalue() and "end" in out.getvalue()
    assert not {"\x1b", "\x07", "\x9b", "\udc83"} & {*out.getvalue()}


def test_lines_that_no_report_prints_never_command_the_terminal_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Guards: printable in chat._lines, in train._print and in say_what_is_not_run."""
    from ftkit.models.untrusted import say_what_is_not_run
    from ftkit.stages import chat
    from ftkit.training import train

    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{HOSTILE}\n"))
    assert list(chat._lines()) == [HOSTILE]
    train._print("", HOSTILE)
    say_what_is_not_run(True, HOSTILE)
    out = capsys.readouterr().out
    assert out.count(HARMLESS) == 3 and not {"\x1b", "\x07", "\x9b"} & {*out}


def test_prepare_counts_its_rows_on_a_terminal_and_now_and_then_elsewhere(tmp_path: Path, monkeypatch):
    shown = on_terminal("experiment=tiny", "stage=prepare", f"run.outputs={tmp_path}", columns=100)
    assert "256 rows read" in shown and shown.splitlines()[-1].startswith("prepare ")

    from ftkit import console

    said: list[str] = []
    monkeypatch.setattr(console, "COUNT_EVERY_S", -1.0)
    with console.counting("rows read", said.append) as count:
        count(1000)
        count(234)
    assert said == ["1,000 rows read", "1,234 rows read"]


def test_where_several_runs_print_no_line_renews_itself(monkeypatch):
    from rich.console import Console

    from ftkit import console

    out, lengths = io.StringIO(), [0]
    monkeypatch.setattr(console, "console", lambda: Console(file=out, force_terminal=True))
    monkeypatch.setattr(console, "_is_shared", False)
    for label in ("", "r=4"):
        console.Report(resolve(["experiment=tiny"]), label)
        with console.counting("rows read", print) as count:
            count(1)
        lengths.append(len(out.getvalue()))
    assert lengths[0] < lengths[1] == lengths[2]


def test_what_a_library_writes_is_counted_by_its_files(tmp_path: Path, monkeypatch):
    from ftkit import console

    said: list[str] = []
    monkeypatch.setattr(console, "COUNT_EVERY_S", -1.0)
    monkeypatch.setattr(console, "GROWTH_EVERY_S", 0.01)
    with console.growing(tmp_path / "merged", 3 << 20, said.append):
        (tmp_path / "merged").mkdir()
        with (tmp_path / "merged" / ".tmp0").open("wb") as file:
            file.truncate(3 << 20)  # as safetensors does: its size is there before its bytes
            file.write(b"a" * (3 << 19))
            file.flush()
            while not said or said[-1].startswith("0.0 MiB"):
                pass
            assert not said[-1].startswith("3.0 MiB")
            file.write(b"a" * (3 << 19))
            file.flush()
            while said[-1] != "3.0 MiB of 3.0 MiB written":
                pass


def test_a_dumb_terminal_gets_text_alone(tmp_path: Path):
    shown = on_terminal("experiment=tiny", "stage=prepare,plan", f"run.outputs={tmp_path}", columns=80, TERM="dumb")
    assert "\x1b" not in shown and "256 rows" in shown and "no problems" in shown


def test_names_of_columns_never_command_the_terminal(ftkit, tmp_path: Path):
    """OSC 52 writes to the clipboard, CSI 31 m colours what follows."""
    (tmp_path / "rows.jsonl").write_text('{"\\u001b]52;c;aGk=\\u0007": "a", "\\u009b31mq": "b"}\n', encoding="utf-8")
    refused = ftkit("experiment=tiny", "dataset=jsonl", "dataset.path=rows.jsonl", "stage=prepare")
    assert refused.status == 1 and "the columns are \\x1b]52;c;aGk=\\x07, \\x9b31mq" in refused.err
    assert not {"\x1b", "\x07", "\x9b"} & {*refused.out, *refused.err}


def test_a_sweep_says_which_of_its_runs_begins(ftkit):
    done = ftkit("experiment=tiny", "stage=plan", "lora.r=4,8,16", "-m")
    assert done.status == 0, done.err
    assert [line for line in done.out.splitlines() if " of 3" in line] == ["1 of 3", "2 of 3", "3 of 3"]


@pytest.mark.parametrize(
    ("topic", "shown"),
    [
        ("train", "needs"),
        ("hydra/launcher", "hydra/launcher=parallel"),
        ("sft.learning_rate", "= "),
        ("stage=prepare,train", "prepare:"),
    ],
)
def test_help_knows_stages_plugins_and_defaults(ftkit, topic: str, shown: str):
    done = ftkit("--help", topic)
    assert done.status == 0 and shown in done.out, done


@pytest.mark.parametrize("columns", [80])
def test_the_plan_can_be_read_in_a_narrow_terminal(columns: int, in_empty_folder: Path):
    out = on_terminal("experiment=tiny", "stage=plan", "deployment.port=0", columns=columns)
    table = out.partition("batch")[0]
    assert max(cell_len(line) for line in table.splitlines()) <= columns and "…" not in table
    assert "environment" in table and "would run" in table
