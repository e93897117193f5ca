"""``method``: what fits together, what is said where it does not, and the run that a training goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftkit.config.methods import DpoMethod
from ftkit.config.resolve import load_frozen, resolve
from ftkit.errors import ConfigError, Problem

PAIRS = ("experiment=tiny", "stage=plan", "method=dpo", "dataset=preference", "dataset.path=package:sample.jsonl")


def problems(*arguments: str) -> list[Problem]:
    with pytest.raises(ConfigError) as error:
        resolve(arguments)
    return list(error.value.problems)


def test_dpo_takes_trls_keys_under_their_names() -> None:
    config = resolve([*PAIRS, "method.loss_type=[sigmoid,sft]", "method.loss_weights=[1.0,0.2]", "method.beta=0.3"])
    assert isinstance(config.method, DpoMethod)
    assert (config.method.losses, config.method.loss_weights, config.method.beta) == (["sigmoid", "sft"], [1, 0.2], 0.3)


@pytest.mark.parametrize(
    ("override", "key", "what", "cure"),
    [
        ("sft.packing=true", "sft.packing", "packs no rows", "sft.packing=false"),
        ("lora=none", "lora", "switching the adapter off", "lora=experts"),
        ("sft.router_aux_loss_coef=0.1", "sft.router_aux_loss_coef", "no balance loss", "sft.router_aux_loss_coef=0.0"),
        (
            "dataset.overlength=truncate-thinking",
            "dataset.overlength",
            "takes answers whole",
            "dataset.overlength=drop",
        ),
        ("method.loss_weights=[1.0,0.5]", "method.loss_weights", "2 weights for 1 loss", "method.loss_weights=[1.0]"),
        ("method.loss_type=exo_pair", "method.label_smoothing", "takes a share", "method.label_smoothing=1e-3"),
        ("method.start=tiny", "method.start", "which is this run", "run.name=tiny-dpo"),
        ("method.beta=0", "method.beta", "greater than 0", ""),
        ("method.num_generations=4", "method.num_generations", "a key of method=grpo", "method=grpo"),
        ("dataset.columns.rejected=null", "dataset.columns", "rejected is not", "dataset.columns.rejected="),
        ("dataset.columns.thinking=t", "dataset.columns", "cannot stand beside", "dataset.columns.thinking=null"),
    ],
)
def test_what_a_pair_cannot_be_trained_with_is_refused_with_a_cure(
    override: str, key: str, what: str, cure: str, in_empty_folder: Path
) -> None:
    found = {problem.key: problem for problem in problems(*PAIRS, override)}
    assert what in found[key].what and cure in found[key].cure


@pytest.mark.parametrize(
    ("override", "key", "what", "cure"),
    [
        ("method.num_generations=6", "method.num_generations", "are no multiple", "sft.gradient_accumulation_steps=6"),
        ("method.max_completion_length=512", "method.max_completion_length", "no room", "=256"),
        ("+method.rewards.rigth=1.0", "method.rewards", "'rigth' is no reward", "did you mean right?"),
        ("dataset.reasoning_language=German", "method.rewards", "knows Japanese", "~method.rewards.language"),
        ("model.attn_implementation=ftkit_sinks", "model.attn_implementation", "writes no answers", "=eager"),
        ("sft.packing=true", "sft.packing", "packs no rows", "sft.packing=false"),
    ],
)
def test_what_answers_cannot_be_drawn_with_is_refused_with_a_cure(
    override: str, key: str, what: str, cure: str
) -> None:
    grpo = ("experiment=tiny", "stage=plan", "run.name=g", "method=grpo", "method.max_completion_length=128")
    assert resolve(grpo).method.rollouts == 8
    found = {problem.key: problem for problem in problems(*grpo, override)}
    assert what in found[key].what and cure in found[key].cure


def test_losses_that_do_not_go_together_are_named() -> None:
    found = problems(*PAIRS, "method.loss_type=[sigmoid,aot]", "method.f_divergence_type=forward_kl")
    assert found[0].key == "method.f_divergence_type" and "aot has reverse_kl alone" in found[0].what
    found = problems(*PAIRS, "method.loss_type=aot", "method.use_weighting=true")
    assert found[0].cure == "method.use_weighting=false"


def test_rows_of_the_other_method_are_refused() -> None:
    (found,) = problems("experiment=tiny", "stage=plan", "method=dpo")
    assert found.cure == "dataset=preference dataset.path=package:sample.jsonl"
    (found,) = problems("experiment=tiny", "stage=plan", "dataset=preference", "dataset.path=package:sample.jsonl")
    assert found.key == "method" and found.cure.startswith("method=dpo")
    assert resolve(["experiment=tiny", "stage=prepare", *PAIRS[3:]]), "rows can be prepared whatever comes after"


def test_a_key_of_another_method_is_told_by_its_method() -> None:
    (found,) = problems("experiment=tiny", "stage=plan", "method.beta=0.2")
    assert found.what == "a key of method=dpo, and the method is sft" and found.cure == "method=dpo, or leave it out"
    (found,) = problems("experiment=tiny", "stage=plan", "method.name=ppo")
    assert found.what == "'ppo' is not one of sft, dpo, grpo"


def test_an_experiment_for_one_method_is_run_with_another(in_empty_folder: Path) -> None:
    """Guard: _leave_out_other_kinds in compose."""
    path = in_empty_folder / "conf" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("defaults: [tiny, {override /method: dpo}, _self_]\nmethod: {beta: 0.5}\n", encoding="utf-8")
    assert resolve(["experiment=mine", "stage=prepare"]).method.beta == 0.5  # pyright: ignore
    assert resolve(["experiment=mine", "stage=plan", "method=sft"]).method.name == "sft"


@pytest.fixture
def merged(in_empty_folder: Path) -> Path:
    """The run ``first`` with a merged model: the tiny one's files."""
    from ftkit import records
    from ftkit.assets import asset_path

    run = in_empty_folder / "outputs" / "first"
    (run / "merged").mkdir(parents=True)
    config = Path(asset_path("package:tiny-gpt-oss"), "config.json").read_text(encoding="utf-8")
    (run / "merged" / "config.json").write_text(config, encoding="utf-8")
    (run / "config.yaml").write_text("{}", encoding="utf-8")
    result = {"folder": "merged", "digest": "abc", "data": "rows:1", "trained": {}}
    records.write(run, records.Record("merge", "", {}, {}, {}, result, {}, 1.0, "2026-01-01T00:00:00"))
    return run


def test_a_training_goes_on_from_the_merged_model_of_a_run(merged: Path, tmp_path: Path) -> None:
    """Its digest is among what the training depends on, so that another merged model is trained on anew."""
    from ftkit.config.resolve import freeze
    from ftkit.config.stages import BY_NAME
    from ftkit.pipeline.stage import settings_of

    config = resolve([*PAIRS, "run.name=second", "method.start=first"])
    assert config.model.pretrained_model_name_or_path == "outputs/first/merged"
    assert settings_of(BY_NAME["train"], config)["job.start"] == "abc"
    freeze(config, tmp_path / "frozen.yaml")
    again = load_frozen(tmp_path / "frozen.yaml")
    assert again.model == config.model and again.job.start == "abc"
    assert again.job.replaced == "package:tiny-gpt-oss"


def test_a_job_takes_no_second_model_along_to_compare_with(merged: Path) -> None:
    (merged / "base").mkdir()
    base = f"model.pretrained_model_name_or_path={merged / 'base'}"
    (found,) = problems(
        *PAIRS,
        "run.name=second",
        "method.start=first",
        base,
        "evaluation.base=model",
        "compute=h100x1",
        "deployment=managed",
    )
    assert found.key == "evaluation.base" and found.cure == "evaluation.base=start, or compute=local"


def test_a_run_to_go_on_from_has_to_be_there_and_merged(merged: Path) -> None:
    (found,) = problems(*PAIRS, "run.name=second", "method.start=fist")
    assert (found.what, found.cure) == ("there is no run fist", "did you mean method.start=first?")
    (merged / "merge" / "record.json").unlink()
    (found,) = problems(*PAIRS, "run.name=second", "method.start=first")
    assert found.what == "the run first has no merged model"
    assert found.cure == "python -m ftkit --resolved outputs/first/config.yaml stage=merge"


def test_a_merged_model_that_is_gone_is_named(merged: Path) -> None:
    (merged / "merged" / "config.json").unlink()
    (found,) = problems(*PAIRS, "run.name=second", "method.start=first")
    assert found.what == "outputs/first/merged is gone" and "stage=merge" in found.cure


@pytest.mark.parametrize("inside", ["train/adapter", "checkpoints/05ed/checkpoint-8", ""])
def test_an_adapter_or_a_run_in_the_place_of_a_model_is_told_with_the_merged_one(merged: Path, inside: str) -> None:
    """Guard: checkpoint._no_model; the tokenizer beside an adapter is enough for prepare."""
    folder = merged / inside
    folder.mkdir(parents=True, exist_ok=True)
    if inside:
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "package:tiny-gpt-oss"}')
    second = ("experiment=tiny", "stage=prepare", "run.name=second")
    key = "model.pretrained_model_name_or_path"
    (found,) = problems(*second, f"{key}={folder}")
    assert (found.key, found.cure) == (key, f"{key}={merged}/merged")
    assert ("no model by itself" if inside else "the folder of a run") in found.what
    assert resolve([*second, found.cure]).model.architecture.vocab_size == 2048
    (merged / "merged" / "config.json").unlink()
    (found,) = problems(*second, f"{key}={folder}")
    assert found.cure.startswith(f"python -m ftkit --resolved {merged}/config.yaml stage=merge, then ")


def test_an_adapter_of_another_kit_is_no_model_either(in_empty_folder: Path) -> None:
    (in_empty_folder / "lora").mkdir()
    (in_empty_folder / "lora" / "adapter_config.json").write_text("{}")
    (found,) = problems("experiment=tiny", "stage=prepare", "model.pretrained_model_name_or_path=lora")
    assert "no model by itself" in found.what and "with it merged" in found.cure
