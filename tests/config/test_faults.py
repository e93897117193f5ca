"""What new users type and write: each mistake is named with its place and a cure, and nothing of it is ignored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ftkit.cli import flags
from ftkit.config.resolve import resolve
from ftkit.errors import ConfigError, Problem

TINY = "defaults: [tiny, _self_]\n"
MINE = "conf/experiment/mine.yaml"


@pytest.fixture
def conf(in_empty_folder: Path) -> Callable[[str, str | bytes], Path]:
    """Writes a file of the user's own ``conf/``."""

    def write(name: str, text: str | bytes) -> Path:
        path = in_empty_folder / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def problems(*arguments: str) -> list[Problem]:
    with pytest.raises(ConfigError) as error:
        resolve(arguments)
    return list(error.value.problems)


@pytest.mark.parametrize(
    "head",
    ["", "# what it is\n", "# @package _global_\n", "\ufeff# @package _global_\n", "# why\n\n# @package _global_\n"],
    ids=["plain", "comment", "package", "BOM", "comment first"],
)
def test_an_experiment_is_read_whatever_stands_before_its_keys(conf, head: str) -> None:
    """Guard: the package that ConfSource gives files of experiment/."""
    conf("experiment/mine.yaml", f"{head}{TINY}run: {{name: mine}}\nsft: {{learning_rate: 0.077}}\n")
    config = resolve(["experiment=mine", "stage=plan"])
    assert (config.run.name, config.sft.learning_rate, config.model.name) == ("mine", 0.077, "tiny")


def test_local_settings_need_no_package_line_and_may_be_all_comments(conf) -> None:
    conf("local/default.yaml", "run: {outputs: elsewhere}\n")
    assert resolve(["stage=plan"]).run.outputs == "elsewhere"
    conf("local/default.yaml", "# run: {outputs: elsewhere}\n")
    assert resolve(["stage=plan"]).run.outputs == "outputs"


@pytest.mark.parametrize("entry", ["compute: local", "/compute: local", "override compute: local"])
def test_an_experiment_chooses_options_in_any_spelling(conf, entry: str) -> None:
    conf("experiment/mine.yaml", f"defaults:\n  - {entry}\n  - override /model: tiny\n")
    config = resolve(["experiment=mine", "stage=plan"])
    assert (config.compute.platform, config.deployment.platform, config.model.name) == ("local", "local", "tiny")


FILES = {
    "empty": ("# nothing yet\n", "", "sets nothing"),
    "list": ("- a\n- b\n", ":1", "a list, not keys"),
    "text": ("hello\n", ":1", "a text, not keys"),
    "defaults is a text": ("run: {name: x}\ndefaults: tiny\n", ":2", "not a list"),
    "includes itself": ("# mine\ndefaults: [mine]\n", ":2", "includes itself"),
    "another package": ("# @package sft\nmax_length: 5\n", "", "sets keys of all groups"),
    "unclosed brace": (f"{TINY}run: {{name: x\nsft: {{}}\n", ":2", "{ is not closed"),
    "unclosed quote": (f"{TINY}run: {{name: 'x}}\n", ":2", "quotation mark is not closed"),
    "tab": (f"{TINY}run:\n\tname: x\n", ":3", "a tab stands"),
    "two colons": (f"{TINY}run: name: x\n", ":2", "second colon"),
    "a key twice": (f"{TINY}run: {{name: x}}\nrun: {{name: y}}\n", ":3", "stands twice"),
    "NUL": (f"{TINY}run: {{name: x\0}}\n", ":2", "character that no text file has"),
    "interpolation breaks off": (f"{TINY}run: {{name: '${{oops'}}\n", ":2", "interpolation that cannot be read"),
    "interpolation of no key": (f"{TINY}run: {{name: '${{modle.name}}'}}\n", ":2", "there is no such key"),
    "no variable": (f"{TINY}run:\n  name: ${{oc.env:FTKIT_NOT_SET}}\n", ":3", "FTKIT_NOT_SET is not set"),
    "a parent that is not there": ("defaults: [tinny]\n", ":1", "no option 'tinny'"),
    "Shift_JIS": ("# x\nrun: {name: 実験}\n".encode("cp932"), ":2", "Shift_JIS"),
    "UTF-16": ("run: {name: x}\n".encode("utf-16"), ":1", "UTF-16"),
    "a key with a dot": (f"{TINY}sft.learning_rate: 0.005\n", ":2", "a key with a dot"),
    "a mistyped key": (f"{TINY}run:\n  nmae: x\n", ":3", "unknown key"),
    "a bare no": (f"{TINY}sft:\n  eval_strategy: no\n", ":3", "which YAML makes of a bare no"),
    "a wrong value": (f"{TINY}sft:\n  packing: maybe\n", ":3", "'maybe' is not true or false"),
    "Python's None": (f"{TINY}model: {{revision: None}}\n", ":2", "YAML's is null"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_what_is_wrong_in_a_file_is_told_with_its_line(conf, name: str) -> None:
    text, line, says = FILES[name]
    conf("experiment/mine.yaml", text)
    (problem,) = problems("experiment=mine", "stage=plan")
    assert says in problem.what and problem.where == MINE + line and problem.cure, problem
    assert "maybe" not in problem.cure


@pytest.mark.parametrize("group", ["sft", "dataset"])
def test_a_key_of_an_own_option_is_placed_in_its_file(conf, group: str) -> None:
    base = {"sft": "default", "dataset": "jsonl"}[group]
    extra = "path: rows.jsonl\n" if group == "dataset" else ""
    conf(f"{group}/mine.yaml", f"defaults: [{base}, _self_]\n{extra}nonsense: 1\n")
    (problem,) = problems(f"{group}=mine", "stage=train", "compute=local")
    assert problem.where.startswith(f"conf/{group}/mine.yaml:") and problem.what == "unknown key"


def test_a_named_option_wins_over_the_experiment_and_a_typed_value_over_both(conf) -> None:
    """Guard: compose._let_named_options_win."""
    config = resolve(["experiment=tiny", "sft=low-memory", "stage=plan"])
    assert (config.sft.max_length, config.sft.per_device_train_batch_size, config.sft.learning_rate) == (2048, 1, 3e-3)
    conf("sft/mine.yaml", "defaults: [default, _self_]\nlearning_rate: 0.001\nmax_length: 300\n")
    config = resolve(["experiment=tiny", "sft=mine", "sft.max_length=200", "stage=plan"])
    assert (config.sft.learning_rate, config.sft.max_length, config.sft.packing) == (0.001, 200, False)
    conf("experiment/mine.yaml", f"{TINY}lora: {{r: 4}}\n")
    assert resolve(["experiment=mine", "lora=none", "stage=plan"]).lora is None


def test_settings_of_this_machine_stay_above_a_named_option(conf) -> None:
    conf("local/default.yaml", "deployment: {port: 7000}\ncompute: {cluster: mine}\n")
    config = resolve(["experiment=tiny", "deployment=local", "stage=plan"])
    assert config.deployment.port == 7000
    assert resolve(["stage=plan"]).azure_compute.cluster == "mine"


@pytest.mark.parametrize(
    ("arguments", "deployed"), [(["compute=local"], "local"), ([], "azureml"), (["deployment=vllm"], "azureml")]
)
def test_the_deployment_follows_the_platform_of_compute(arguments: list[str], deployed: str) -> None:
    assert resolve([*arguments, "model=tiny", "stage=plan"]).deployment.platform == deployed


TYPED = [
    ("experiment.tiny=true", "experiment.tiny", "experiment=tiny"),
    ("experiment=conf/experiment/tiny.yaml", "experiment", "did you mean experiment=tiny?"),
    ("conf/experiment/tiny.yaml", "conf/experiment/tiny.yaml", "experiment=tiny"),
    ("tiny", "tiny", "did you mean experiment=tiny?"),
    ("tran", "tran", "did you mean stage=train?"),
    ("stage=prepare，train", "stage", "stage=prepare,train"),
    ("stage＝plan", "stage", "stage=plan"),
    ("ｌｏｒａ.r=8", "lora.r", "lora.r=8"),
    ("lora.r＝8", "lora.r", "lora.r=8"),
    ("lora.r=８", "lora.r", "lora.r=8"),
    ("experiment=tiny\u3000stage=train", "experiment", "experiment=tiny stage=train"),
    ("experiment=ｔｉｎｙ", "experiment", "experiment=tiny"),
    ("–m", "–m", "-m"),
    ("sft.learning_rate=0.005 ＃学習率", "sft.learning_rate", "for instance sft.learning_rate=0.0002"),
    ("sft=learning_rate:5e-3", "sft", "did you mean sft.learning_rate=5e-3?"),
    ("lora.r=4,", "lora.r", "lora.r=4"),
    ("sft.packing=maybe", "sft.packing", "for instance sft.packing=true"),
    ("sft.eval_strategy=false", "sft.eval_strategy", 'sft.eval_strategy=no, or "no" in quotes in a file'),
    ("model.revision=None", "model.revision", "model.revision=null"),
    ("compute.usd_per_hour=None", "compute.usd_per_hour", "compute.usd_per_hour=null"),
    ("+dataset.turns.roles.tool=toool", "dataset.turns.roles.tool", "did you mean dataset.turns.roles.tool=tool?"),
    ("compute.platform=kubernetes", "compute.platform", "compute=local"),
    ("compute.platform=slurm", "compute.platform", "compute=slurm"),
    ("compute.platform=local", "compute.platform", "compute=local"),
    ("method.name=dpo", "method.name", "method=dpo"),
    ("hydra/launcher=paralel", "hydra/launcher",
     "did you mean hydra/launcher=parallel? there are azureml, basic, joblib, parallel"),
    ("job.records=x", "job", "leave it out"),
    ("run.name=a/b", "run.name", "for instance run.name=gpt-oss-20b-jp-reasoner"),
    ("report_to=wandb", "report_to", "did you mean tracking?"),
    ("sft.report_to=wandb", "sft.report_to", "did you mean tracking?"),
    ("micro_batch_size=2", "micro_batch_size", "did you mean sft.per_device_train_batch_size?"),
    ("sft.seq_len=5", "sft.seq_len", "did you mean sft.max_length?"),
    ("output_dir=x", "output_dir", "did you mean run.outputs?"),
    ("lora_rank=4", "lora_rank", "did you mean lora.r?"),
    ("+dataset.config_name=ja", "dataset.config_name", "did you mean dataset.subset?"),
    ("validation_file=dev.jsonl", "validation_file", "did you mean dataset.validation?"),
    ("sft.hub_model_id=me/m", "sft.hub_model_id", "did you mean registration.hub?"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "key", "cure"), TYPED, ids=[row[0] for row in TYPED])
def test_what_is_mistyped_is_named_once_with_its_cure(typed: str, key: str, cure: str) -> None:
    (problem,) = problems(typed, *([] if typed.startswith("stage") else ["stage=plan"]))
    assert (problem.key, problem.cure, problem.where) == (key, cure, "on the command line")


@pytest.mark.parametrize(
    ("words", "key", "cure"),
    [
        (["--config-name", "x"], "--config-name", "experiment=mine, with the file conf/experiment/mine.yaml"),
        (["--config-dir", "/nowhere"], "--config-dir", "a folder conf/ where you start ftkit is read by itself"),
        (["--multirn"], "--multirn", "did you mean --multirun?"),
        (["--nonsense"], "--nonsense", "python -m ftkit --help lists the flags"),
        (["--cfg", "jobs"], "--cfg", "--cfg job"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else None,
)
def test_a_flag_that_does_nothing_here_is_named_with_what_does(words: list[str], key: str, cure: str) -> None:
    with pytest.raises(ConfigError) as error:
        flags.split([*words, "stage=plan"])
    (problem,) = error.value.problems
    assert (problem.key, problem.cure) == (key, cure)


@pytest.mark.parametrize(
    ("typed", "key", "says"),
    [
        ("run.name=私の実験", "run.name", "letters a to z, digits"),
        ("merge.gguf=../llama.cpp", "merge.gguf", "no such file or folder: ../llama.cpp"),
    ],
)
def test_a_name_or_path_that_cannot_be_is_said_and_its_cure_is_another(typed: str, key: str, says: str) -> None:
    (problem,) = problems(typed, "experiment=tiny", "stage=plan")
    assert problem.key == key and says in problem.what and typed not in problem.cure


@pytest.mark.parametrize("words", [["stage", "=", "train"], ["stage=", "train"], ["stage", "=train"]])
def test_blanks_around_the_sign_are_named_with_the_line_corrected(words: list[str]) -> None:
    (problem,) = problems(*words)
    assert problem.cure == "stage=train"


@pytest.mark.parametrize("words", [["stage=prepare,", "train"], ["prepare", "train"], ["train", "stage=prepare"]])
def test_stages_by_themselves_and_after_a_blank_are_understood(words: list[str]) -> None:
    assert resolve([*words, "experiment=tiny"]).stages == ("prepare", "train")


@pytest.mark.parametrize(
    "arguments",
    [
        ["compute=local", "deployment=local", "deployment.endpoint_name=vl"],
        ["experiment=tyny", "stage=deploy"],
        ["compute=lokal", "stage=train"],
        ["dataset=jsonl", "dataset.path=[", "stage=prepare"],
    ],
)
def test_what_depends_on_a_faulty_value_is_not_judged(arguments: list[str]) -> None:
    """Guard: NotJudged; the default composition would be judged in its place."""
    assert len(problems(*arguments)) == 1


def test_an_option_file_with_the_other_ending_is_named(conf) -> None:
    conf("experiment/mine.yml", f"{TINY}run: {{name: mine}}\n")
    (problem,) = problems("experiment=mine", "stage=plan")
    assert problem.what == "conf/experiment/mine.yml is not read" and "mine.yaml" in problem.cure
