"""Every option of every group and every experiment composes, passes the schema and the checks, and can be planned."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers.command import REPOSITORY

from ftkit.config.groups import GROUPS
from ftkit.config.option_files import option_file, options, shipped_conf
from ftkit.config.resolve import resolve
from ftkit.errors import ConfigError
from ftkit.models.training_memory import footprint

COMPANIONS = {
    "compute=local": ["model=tiny"],
    "deployment=local": ["compute=local", "model=tiny"],
    "model=tiny": ["sft.max_length=512", "lora=experts"],
    "sft=fsdp": ["compute=h100x8"],
    "generate=teacher": ["generate.url=http://127.0.0.1:8000/v1", "generate.model=any"],
    "method=dpo": ["dataset=preference", "dataset.path=rows.jsonl", "sft.packing=false"],
    "method=grpo": ["sft.packing=false", "model.attn_implementation=eager"],
    "evaluation=jmmlu": ["evaluation.path=high_school_physics.csv"],
    "dataset=mix": ["dataset.mix={ja: {path: rows.jsonl}}"],
    "dataset=preference": ["dataset.path=rows.jsonl", "method=dpo", "sft.packing=false"],
    **{
        f"dataset={option}": ["dataset.path=rows.jsonl"]
        for option in ("jsonl", "alpaca", "messages", "sharegpt", "prompt-completion")
    },
}
"""Overrides without which an option makes no sense."""
FILES = (
    *("rows.jsonl", "chats.jsonl", "mgsm_ja.tsv", "mgsm_ja.jsonl", "valid-v1.1.json", "corpus_ver1.1_dev.json"),
    *("gpqa_diamond.csv", "high_school_physics.csv"),
)
"""Files that options, or the commands in them, name."""

CHOICES = [f"{group}={option}" for group in GROUPS for option in options(group)]
EXPERIMENTS = options("experiment")


@pytest.mark.parametrize("choice", CHOICES)
def test_option_composes_and_passes_all_checks(choice: str, in_empty_folder: Path):
    for name in FILES:
        (in_empty_folder / name).write_text("{}")
    config = resolve([choice, *COMPANIONS.get(choice, []), "stage=plan"])
    assert footprint(config).total > 0


@pytest.mark.usefixtures("workspace_named")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_composes_and_passes_all_checks(name: str):
    assert resolve([f"experiment={name}", "stage=all"]).run.name


@pytest.mark.usefixtures("workspace_named")
@pytest.mark.parametrize("choice", [*CHOICES, *(f"experiment={name}" for name in EXPERIMENTS)])
def test_option_file_says_what_it_is_and_shows_a_command(choice: str, in_empty_folder: Path):
    for name in FILES:
        (in_empty_folder / name).write_text("{}")
    group, _, option = choice.partition("=")
    path = option_file(group, option)
    assert path is not None
    header = [line for line in path.read_text(encoding="utf-8").splitlines()[:6] if line.startswith("#")]
    commands = [line for line in header if re.search(r"#\s+python -m ftkit ", line)]
    assert len(header) >= 2 and commands, f"{path} lacks its header"
    resolve(shlex.split(commands[0].split("python -m ftkit ")[1].replace(" -m", "").replace("=4,8 ", "=4 ")))


def test_the_options_that_users_rely_on_exist():
    expected = {
        "model": {"gpt-oss-20b", "gpt-oss-120b", "tiny"},
        "dataset": {"apto", "sample", "jsonl"},
        "lora": {"attention", "experts", "cookbook", "none"},
        "sft": {"default", "ddp-safe", "low-memory"},
        "compute": {"local", "h100x1", "h100x2", "h100x2-nvl", "h100x8", "a100x1", "a100x4", "a100x8"},
        "deployment": {"local", "managed", "vllm"},
        "experiment": {"tiny"},
        "hydra/launcher": {"parallel", "azureml"},
        "hydra/sweeper": {"search"},
    }
    for group, names in expected.items():
        assert names <= set(options(group))


def test_default_composition_is_the_real_job():
    config = resolve(["stage=plan"])
    assert config.model.pretrained_model_name_or_path == "openai/gpt-oss-20b"
    assert config.compute.platform == config.deployment.platform == "azureml"
    assert (config.lora.r, config.lora.lora_alpha, config.sft.learning_rate) == (8, 16, 2e-4)
    assert config.sft.lr_scheduler_kwargs is None


def test_users_own_conf_beside_them_adds_options_and_local_settings(in_empty_folder: Path):
    conf = in_empty_folder / "conf"
    (conf / "experiment").mkdir(parents=True)
    (conf / "local").mkdir()
    (conf / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /lora: attention\nrun: {name: mine}\n"
    )
    (conf / "local" / "default.yaml").write_text("run: {outputs: elsewhere}\n")
    config = resolve(["experiment=mine", "stage=plan"])
    assert (config.run.name, config.run.outputs, config.lora.target_parameters) == ("mine", "elsewhere", None)


def test_a_typo_in_the_users_file_is_reported_with_the_file(in_empty_folder: Path):
    conf = in_empty_folder / "conf" / "experiment"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text("# @package _global_\nsft: {max_seq_length: 1024}\n")
    with pytest.raises(ConfigError) as error:
        resolve(["experiment=mine", "stage=plan"])
    (problem,) = error.value.problems
    assert (problem.key, problem.where) == ("sft.max_seq_length", "conf/experiment/mine.yaml:2")
    assert "sft.max_length" in problem.cure


def test_a_typo_in_the_local_settings_is_reported_with_the_file(in_empty_folder: Path):
    (in_empty_folder / "conf" / "local").mkdir(parents=True)
    (in_empty_folder / "conf" / "local" / "default.yaml").write_text("workspace: {subscription: s}\n")
    with pytest.raises(ConfigError) as error:
        resolve(["stage=plan"])
    (problem,) = error.value.problems
    assert (problem.key, problem.where) == ("workspace.subscription", "conf/local/default.yaml:1")


def test_broken_yaml_names_file_and_line(in_empty_folder: Path):
    conf = in_empty_folder / "conf" / "experiment"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text("# @package _global_\nsft: {max_length: 5\nrun: x\n")
    with pytest.raises(ConfigError) as error:
        resolve(["experiment=mine", "stage=plan"])
    assert "mine.yaml:" in error.value.problems[0].where


def test_shipped_conf_is_the_repository_one():
    assert shipped_conf() == REPOSITORY / "conf"
