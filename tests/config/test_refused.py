"""What is known to fail is refused before anything loads, with its cure; and the cure, typed as shown, cures it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ftkit.config import checks, training_checks
from ftkit.config.problems import ELSEWHERE, REFUSED, REFUSED_VALUES, all_keys
from ftkit.config.resolve import resolve
from ftkit.errors import ConfigError, Problem

TWO = "compute=h100x2"
TINY = "experiment=tiny"
REGISTERED = "model.pretrained_model_name_or_path=azureml:gpt-oss-20b:1"


def command(*arguments: str) -> list[str]:
    return [*arguments, *([] if any(argument.startswith("stage=") for argument in arguments) else ["stage=plan"])]


def refused(*arguments: str) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as error:
        resolve(command(*arguments))
    return {problem.key: problem for problem in error.value.problems}


def cures(problem: Problem, cure: str, arguments: list[str]) -> None:
    """The problem names the cure; if it is of overrides alone, these cure it, whatever else was typed."""
    assert cure in problem.cure, problem
    if all("=" in word for word in cure.split()):
        replaced = {word.partition("=")[0] for word in cure.split()}
        kept = [a for a in arguments if not a.startswith("+") and a.partition("=")[0] not in replaced]
        assert resolve(command(*kept, *cure.split()))


@pytest.mark.parametrize("reentrant", ["true", "false"])
@pytest.mark.parametrize("find_unused", ["null", "true", "false"])
def test_ddp_with_expert_lora(reentrant: str, find_unused: str) -> None:
    """Reentrant checkpointing fails under DDP unless the search for unused parameters is off; null means true.

    Guard: training_checks.reentrant_checkpointing_under_ddp.
    """
    arguments = [f"sft.gradient_checkpointing_kwargs.use_reentrant={reentrant}",
                 f"sft.ddp_find_unused_parameters={find_unused}"]  # fmt: skip
    assert resolve(command("compute=h100x1", *arguments))
    if reentrant == "false" or find_unused == "false":
        assert resolve(command(TWO, *arguments))
        return
    problem = refused(TWO, *arguments)["sft.gradient_checkpointing_kwargs"]
    assert "Expected to mark a variable ready only once" in problem.what and problem.cure == "sft=ddp-safe"
    assert resolve(command(TWO, problem.cure))


COMBINATIONS = [
    (checks.adapters_are_served_here, "deployment.adapters={ja:runs}", "deployment.adapters",
     "deployment.adapters={}"),
    (checks.adapters_are_served_here, f'{TINY} deployment.adapters={{ja:runs}} deployment.gate=["right>=base"]',
     "deployment.adapters", "deployment.gate=[]"),
    (checks.adapters_are_served_here, f"{TINY} deployment.adapters={{tiny:runs}}", "deployment.adapters",
     "another name than tiny"),
    (checks.trackio_stays_on_this_machine, "tracking=[trackio,tensorboard]", "tracking", "tracking=auto"),
    (checks.adapter_is_there_to_ask, "lora=none evaluation.adapter=true", "evaluation.adapter",
     "evaluation.adapter=false"),
    (checks.gate_can_be_read, 'deployment.gate=["right>=adapter"]', "deployment.gate", "evaluation.adapter=true"),
    (checks.stage_exists, "stage=trian", "stage", "did you mean stage=train?"),
    (checks.compute_fits_its_platform, "compute.instance_type=null", "compute.instance_type",
     "for instance compute=h100x1"),
    (checks.compute_fits_its_platform, f"{TINY} compute.nodes=2", "compute.nodes",
     "compute.nodes=1 compute.gpus_per_node=2"),
    (checks.deployment_fits_its_platform, "deployment.instance_type=null", "deployment.instance_type",
     "for instance deployment=managed"),
    (checks.deployment_fits_its_platform, "deployment=local", "deployment.platform", "deployment=managed"),
    (checks.deployment_fits_its_platform, f"{TINY} deployment=managed", "deployment.platform", "deployment=local"),
    (checks.server_has_its_image, "deployment.server=vllm", "deployment.image", "deployment=vllm"),
    (checks.server_has_its_image, "deployment.image=a/b:1", "deployment.image", "deployment.image=null"),
    (checks.server_has_its_image, f"{TINY} deployment.server=vllm deployment.instance_count=2",
     "deployment.instance_count", "deployment.instance_count=1"),
    (checks.rollout_ends_at_100, "deployment.rollout=[10,50]", "deployment.rollout", "deployment.rollout=[10,50,100]"),
    (checks.rollout_ends_at_100, "deployment.rollout=[50,10,100]", "deployment.rollout",
     "deployment.rollout=[10,50,100]"),
    (checks.rollout_ends_at_100, "deployment.rollout=[]", "deployment.rollout", "deployment.rollout=[10,50,100]"),
    (training_checks.dropout_on_experts, "lora.lora_dropout=0.1", "lora.lora_dropout", "lora.lora_dropout=0.0"),
    (training_checks.dropout_on_experts, "lora.lora_dropout=0.1", "lora.lora_dropout", "lora=attention"),
    (training_checks.target_parameters_exist, "lora.target_parameters=[mlp.expert.gate_up_proj]",
     "lora.target_parameters", "did you mean mlp.experts.gate_up_proj?"),
    (training_checks.target_parameters_exist, "lora=cookbook model=tiny", "lora.target_parameters", "did you mean"),
    (training_checks.target_parameters_exist, "lora.target_parameters=[q]", "lora.target_parameters",
     "for instance mlp.experts.gate_up_proj"),
    (training_checks.something_is_trained, "lora.target_modules=[] lora.target_parameters=null", "lora",
     "lora.target_modules=all-linear"),
    (training_checks.flex_attention_needs_a_gpu, "compute.gib_per_gpu=null model.attn_implementation=flex_attention",
     "model.attn_implementation", "model.attn_implementation=eager"),
    (training_checks.flex_attention_needs_a_gpu, f"{TINY} model.attn_implementation=flex_attention",
     "model.attn_implementation", "compute.gib_per_gpu=80"),
    (training_checks.evaluation_has_what_it_needs, "sft.early_stopping_patience=2 sft.eval_strategy=no",
     "sft.early_stopping_patience", "sft.eval_strategy=steps"),
    (training_checks.evaluation_has_what_it_needs, "sft.load_best_model_at_end=true sft.eval_strategy=no",
     "sft.load_best_model_at_end", "sft.eval_strategy=steps"),
    (training_checks.evaluation_has_what_it_needs, "sft.early_stopping_patience=2 dataset.heldout=0.0",
     "sft.early_stopping_patience", "dataset.heldout=0.05"),
    (training_checks.packed_weights_need_low_rank_experts,
     "model.weights=mxfp4 model.experts_implementation=grouped_mm", "model.weights",
     "model.experts_implementation=ftkit_lora"),
    (training_checks.packed_weights_stay_whole_and_frozen, "lora=none model.weights=mxfp4", "model.weights",
     "model.weights=dense"),
    (training_checks.packed_weights_stay_whole_and_frozen, "lora=none model.weights=mxfp4", "model.weights",
     "lora=experts"),
    (training_checks.packed_weights_stay_whole_and_frozen, "model.weights=mxfp4 sft.fsdp=true compute=h100x8",
     "model.weights", "model.weights=dense"),
    (training_checks.sharding_has_several_processes, "sft.fsdp=true", "sft.fsdp", "compute.gpus_per_node=2"),
    (training_checks.sharding_has_several_processes, "sft.fsdp=true", "sft.fsdp", "sft.fsdp=false"),
    (training_checks.schedule_fits_its_arguments, "sft.lr_scheduler_type=cosine", "sft.lr_scheduler_kwargs",
     "sft.lr_scheduler_kwargs.min_lr_rate=null"),
    (training_checks.schedule_fits_its_arguments, "sft.lr_scheduler_kwargs.min_lr_rate=null", "sft.lr_scheduler_kwargs",
     "sft.lr_scheduler_kwargs.min_lr_rate=0.1"),
    (checks.registered_model_needs_a_tokenizer_here, f"{TINY} {REGISTERED}", "model.pretrained_model_name_or_path",
     "compute=h100x1, or the hub id"),
    (checks.registered_model_needs_a_tokenizer_here, f"{REGISTERED} stage=prepare", "model.tokenizer",
     "model.tokenizer=openai/gpt-oss-20b"),
    (training_checks.max_steps_is_positive_or_minus_one, "sft.max_steps=0", "sft.max_steps", "-1 goes by"),
    (training_checks.max_steps_is_positive_or_minus_one, "sft.max_steps=-2", "sft.max_steps", "-1 goes by"),
    (checks.converter_can_be_run, "merge.gguf=../llama.cpp", "merge.gguf", "merge.gguf=null"),
    (checks.converter_can_be_run, f"{TINY} stage=merge merge.gguf=empty", "merge.gguf", "merge.gguf=null"),
    (checks.converter_can_be_run, f"{TINY} stage=merge merge.gguf=emty", "merge.gguf", "did you mean empty?"),
    (checks.converter_can_be_run, f"{TINY} stage=merge merge.gguf=none/x.py", "merge.gguf", "merge.gguf=null"),
    (checks.converter_can_be_run, f"{TINY} stage=merge merge.gguf=rows.jsonl", "merge.gguf", "merge.gguf=null"),
    (checks.gate_can_be_read, "deployment.gate=['right']", "deployment.gate", 'for instance ["thinks_in_japanese'),
    (checks.gate_can_be_read, "deployment.gate=['rihgt>=0.9']", "deployment.gate", 'for instance ["thinks_in_japanese'),
    (checks.hub_token_has_one_place, "secrets.hf_token=a secrets.hf_connection=b", "secrets", "secrets.hf_token=null"),
    (checks.dataset_files_exist, "dataset=jsonl dataset.path=rwos.jsonl stage=prepare", "dataset.path",
     "did you mean rows.jsonl?"),
    (checks.dataset_files_exist, "dataset=jsonl dataset.path=none/x.jsonl stage=prepare", "dataset.path",
     "give the path of your rows"),
    (checks.dataset_files_exist, "dataset=jsonl dataset.path=empty stage=prepare", "dataset.path", "files are .jsonl"),
    (checks.dataset_files_exist, "dataset=jsonl dataset.path=*.parquet stage=prepare", "dataset.path",
     "files are .jsonl"),
    (checks.columns_say_where_the_chat_is, "dataset.columns.messages=chat", "dataset.columns",
     "dataset.columns.question=null dataset.columns.answer=null"),
    (checks.columns_say_where_the_chat_is, "dataset=messages dataset.path=rows.jsonl dataset.columns.thinking=t",
     "dataset.columns", "dataset.columns.thinking=null"),
    (checks.columns_say_where_the_chat_is, "dataset.columns.answer=null", "dataset.columns",
     "or dataset.columns.messages=…"),
    (checks.task_file_exists, f"{TINY} evaluation.path=rows.json stage=evaluate", "evaluation.path",
     "did you mean rows.jsonl?"),
    (checks.task_file_exists, f"{TINY} evaluation.path=empty stage=evaluate", "evaluation.path",
     "a file of questions and answers is .jsonl"),
    (checks.lm_eval_is_there_with_its_tasks, f"{TINY} evaluation.lm_eval.tasks=[gsm8k] stage=evaluate",
     "evaluation.lm_eval", "lm-eval/bin/pip install lm-eval, then evaluation.lm_eval.python="),
    (checks.lm_eval_is_there_with_its_tasks, f"{TINY} evaluation.lm_eval.tasks=[a] evaluation.lm_eval.python=none "
     "stage=evaluate", "evaluation.lm_eval", "python -m venv lm-eval"),
    (checks.lm_eval_is_there_with_its_tasks, f"{TINY} evaluation.lm_eval.tasks=[a] evaluation.lm_eval.python="
     f"{sys.executable} stage=evaluate", "evaluation.lm_eval", f"{sys.executable} -m pip install lm-eval"),
    (checks.lm_eval_is_there_with_its_tasks, f"{TINY} evaluation.lm_eval.tasks=[a] evaluation.lm_eval.include_path="
     "emtpy stage=evaluate", "evaluation.lm_eval.include_path", "did you mean empty?"),
    (checks.lm_eval_is_there_with_its_tasks, f"{TINY} evaluation.lm_eval.tasks=[a] evaluation.lm_eval.include_path="
     "empty stage=evaluate", "evaluation.lm_eval.include_path", "a file like mine.yaml"),
    (checks.lm_eval_is_there_with_its_tasks, "evaluation.lm_eval.tasks=[gsm8k,gsm8k]", "evaluation.lm_eval",
     "name each task once"),
    (checks.lm_eval_is_there_with_its_tasks, "evaluation.lm_eval.limit=5", "evaluation.lm_eval.limit",
     "evaluation.lm_eval.tasks=[gsm8k]"),
    (checks.lm_eval_is_there_with_its_tasks, "evaluation.lm_eval.tasks=[gsm8k] stage=evaluate", "evaluation.lm_eval",
     "/opt/lm-eval/bin/pip install lm-eval"),
    (checks.gate_can_be_read, 'deployment.gate=["lm_eval.gsm8k.exact_match>=base"]', "deployment.gate",
     "evaluation.lm_eval.tasks=[gsm8k]"),
    (checks.several_samples_need_a_temperature, "evaluation.samples=4", "evaluation.samples",
     "evaluation.temperature=1.0"),
    (checks.invoke_has_one_request, f"{TINY} stage=invoke invoke.prompt=null", "invoke", "invoke.file=request.json"),
    (checks.invoke_has_one_request, f"{TINY} stage=invoke invoke.file=request.json", "invoke", "invoke.file=null"),
]  # fmt: skip
"""Guard, what is typed, the key that is named, and a cure."""


@pytest.mark.parametrize(
    ("guard", "arguments", "key", "cure"), COMBINATIONS, ids=[f"{row[0].__name__}: {row[1]}" for row in COMBINATIONS]
)
def test_combination_that_is_known_to_fail(
    guard: checks.Check, arguments: str, key: str, cure: str, in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: the check that stands beside it; no other runs here, and the cure has to pass all of them."""
    (in_empty_folder / "rows.jsonl").write_text("{}\n")
    (in_empty_folder / "empty").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(checks, "CHECKS", (guard,))
        problem = refused(*arguments.split())[key]
    cures(problem, cure, arguments.split())


def test_no_check_is_without_a_test() -> None:
    elsewhere = {training_checks.reentrant_checkpointing_under_ddp, checks.workspace_is_named}
    assert {row[0] for row in COMBINATIONS} | elsewhere == set(checks.CHECKS)


KEYS = {
    "sft.save_only_model": "sft.save_total_limit=1",
    "sft.ignore_data_skip": "leave it out",
    "sft.packing_strategy": "sft.packing=true",
    "sft.padding_free": "sft.packing=true",
    "sft.assistant_only_loss": "leave it out",
    "sft.completion_only_loss": "leave it out",
    "lora.use_dora": "lora.use_rslora=true",
    "lora.lora_bias": "leave it out",
}


@pytest.mark.parametrize("key", KEYS)
def test_key_of_a_library_that_does_harm(key: str) -> None:
    """Guard: its line in problems.REFUSED."""
    problem = refused(f"+{key}=true")[key]
    assert problem.what not in ("", "unknown key")
    cures(problem, KEYS[key], [])


VALUES = {
    "model.attn_implementation": {
        **dict.fromkeys(("sdpa", "flash_attention_2", "flash_attention_3"), "model.attn_implementation=ftkit_sinks"),
        "paged_attention": "flex_attention or eager",
    },
    "lora.init_lora_weights": dict.fromkeys(
        ("pissa", "olora", "orthogonal", "loftq", "eva", "corda", "lora_ga"), "lora.init_lora_weights=gaussian"
    ),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in VALUES for value in VALUES[key]])
def test_value_of_a_library_that_does_harm(key: str, value: str) -> None:
    """Guard: its place in problems.REFUSED_VALUES."""
    problem = refused(f"{key}={value}")[key]
    assert problem.what.startswith(f"{value} ")
    cures(problem, VALUES[key][value], [f"{key}={value}"])


def test_no_key_or_value_is_refused_without_a_test() -> None:
    assert REFUSED.keys() == KEYS.keys()
    assert {key: set(values) for key, values in REFUSED_VALUES.items()} == {key: set(VALUES[key]) for key in VALUES}


def test_names_of_other_kits_lead_to_keys_that_exist() -> None:
    """Dictionaries take any key below them."""
    known = {*all_keys(), "sft.gradient_checkpointing_kwargs.use_reentrant"}
    assert set(ELSEWHERE.values()) <= known


def test_keys_beside_no_lora_are_refused() -> None:
    cures(refused("lora=none", "lora.r=8")["lora"], "lora=experts", ["lora=none", "lora.r=8"])
