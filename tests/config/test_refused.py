"""What is known to fail is refused before anything loads, with its cure; and the cure, typed as shown, cures it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from helpers.refusals import command, cures, refused

from ftkit.assets import asset_path
from ftkit.config import checks
from ftkit.config.checks import (
    autoscale,
    data,
    evaluation,
    generation,
    llama_cpp,
    methods,
    platform,
    schedule,
    serving,
    training,
)
from ftkit.config.resolve import resolve
from ftkit.errors import ConfigError

TWO = "compute=h100x2"
SCALE = "deployment.autoscale."
TINY = "experiment=tiny"
REGISTERED = "model.pretrained_model_name_or_path=azureml:gpt-oss-20b:1"


@pytest.mark.parametrize("reentrant", ["true", "false"])
@pytest.mark.parametrize("find_unused", ["null", "true", "false"])
def test_ddp_with_expert_lora(reentrant: str, find_unused: str) -> None:
    """Reentrant checkpointing fails under DDP unless the search for unused parameters is off; null means true.

    Guard: training.reentrant_checkpointing_under_ddp.
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


SCHEDULE = "sft.lr_scheduler_kwargs"
COMBINATIONS = [
    (serving.adapters_can_be_served, "deployment=vllm deployment.adapters={ja:runs}", "deployment.adapters",
     "deployment.adapters={}"),
    (serving.adapters_can_be_served, "model.pretrained_model_name_or_path=azureml:m:1 deployment.adapters={ja:runs}",
     "deployment.adapters", "model.pretrained_model_name_or_path=<hub id or folder of azureml:m:1>"),
    (serving.adapters_can_be_served, f'{TINY} deployment.adapters={{ja:runs}} registration.gate=["right>=base"]',
     "deployment.adapters", "registration.gate=[]"),
    (serving.adapters_can_be_served, f"{TINY} deployment.adapters={{tiny:runs}}", "deployment.adapters",
     "another name than tiny"),
    (platform.trackio_and_wandb_are_not_in_a_jobs_image, "tracking=[trackio,tensorboard]", "tracking", "tracking=auto"),
    (platform.trackio_and_wandb_are_not_in_a_jobs_image, "tracking=wandb", "tracking", "tracking=auto"),
    (platform.mlflow_has_a_server, f"{TINY} tracking=mlflow", "tracking", "tracking=tensorboard"),
    (evaluation.adapter_is_there_to_ask, "lora=none evaluation.adapter=true", "evaluation.adapter",
     "evaluation.adapter=false"),
    (evaluation.gate_can_be_read, 'registration.gate=["right>=adapter"]', "registration.gate",
     "evaluation.adapter=true"),
    (platform.stage_exists, "stage=trian", "stage", "did you mean stage=train?"),
    (platform.compute_fits_its_platform, "compute.instance_type=null", "compute.instance_type",
     "for instance compute.instance_type="),
    (platform.compute_fits_its_platform, f"{TINY} stage=train compute.nodes=2", "compute.nodes",
     "compute.nodes=1 compute.gpus_per_node=2"),
    (platform.hub_is_pushed_to_from_here, "registration.hub=me/mine", "registration.hub", "registration.hub=null"),
    (platform.hub_is_pushed_to_from_here,
     f"{TINY} lora=none registration.hub=me/m registration.hub_parts=[model,adapter]", "registration.hub_parts",
     "registration.hub_parts=[model]"),
    (serving.deployment_fits_its_platform, "deployment.instance_type=null", "deployment.instance_type",
     "for instance deployment.instance_type="),
    (serving.deployment_fits_its_platform, "deployment=local", "deployment.platform", "deployment=managed"),
    (serving.deployment_fits_its_platform, f"{TINY} deployment=managed", "deployment.platform", "deployment=local"),
    (serving.endpoint_settings_reach_their_engine, "deployment.engine=transformers deployment.engine_args={a:1}",
     "deployment.engine_args", "deployment.engine_args={}"),
    (serving.endpoint_settings_reach_their_engine, f"{TINY} deployment.engine=vllm deployment.instance_count=2",
     "deployment.instance_count", "deployment.instance_count=1"),
    (serving.endpoint_settings_reach_their_engine, "deployment.allowed_hosts=[a.example]", "deployment.allowed_hosts",
     "deployment.allowed_hosts=[]"),
    (serving.endpoint_settings_reach_their_engine, "deployment.environment_variables={FTKIT_MAX_NEW_TOKENS:'9'}",
     "deployment.environment_variables.FTKIT_MAX_NEW_TOKENS", "the key deployment.max_new_tokens"),
    (serving.front_processes_have_one_vllm, f"{TINY} deployment.engine=transformers deployment.front_processes=2",
     "deployment.front_processes", "deployment.front_processes=auto"),
    (serving.front_processes_have_one_vllm, "deployment.front_processes=2", "deployment.front_processes",
     "deployment.engine=vllm"),
    (serving.front_processes_have_one_vllm,
     f"{TINY} deployment.engine=auto deployment.front_processes=2 deployment.instance_count=2",
     "deployment.front_processes", "deployment.instance_count=1"),
    (serving.server_has_its_image, "deployment.server=vllm", "deployment.image", "deployment=vllm"),
    (serving.server_has_its_image, "deployment.image=a/b:1", "deployment.image", "deployment.image=null"),
    (serving.server_has_its_image, f"{TINY} deployment.server=vllm deployment.instance_count=2",
     "deployment.instance_count", "deployment.instance_count=1"),
    (serving.rollout_ends_at_100, "deployment.rollout=[10,50]", "deployment.rollout", "deployment.rollout=[10,50,100]"),
    (serving.rollout_ends_at_100, "deployment.rollout=[50,10,100]", "deployment.rollout",
     "deployment.rollout=[10,50,100]"),
    (serving.rollout_ends_at_100, "deployment.rollout=[]", "deployment.rollout", "deployment.rollout=[10,50,100]"),
    (training.dropout_on_experts, "lora.lora_dropout=0.1", "lora.lora_dropout", "lora.lora_dropout=0.0"),
    (training.dropout_on_experts, "lora.lora_dropout=0.1", "lora.lora_dropout", "lora=attention"),
    (training.target_parameters_exist, "lora.target_parameters=[mlp.expert.gate_up_proj]",
     "lora.target_parameters", "did you mean lora.target_parameters=[mlp.experts.gate_up_proj]?"),
    (training.target_parameters_exist, "lora=cookbook model=tiny", "lora.target_parameters", "did you mean"),
    (training.target_parameters_exist, "lora.target_parameters=[q]", "lora.target_parameters",
     "lora.target_parameters=auto"),
    (training.model_computes_as_its_family_can, "model.attn_implementation=sdpa", "model.attn_implementation",
     "model.attn_implementation=auto"),
    (training.model_computes_as_its_family_can, "model=qwen3-8b model.experts_implementation=grouped_mm",
     "model.experts_implementation", "model.experts_implementation=auto"),
    (training.model_computes_as_its_family_can, "model=qwen3-30b-a3b model.weights=mxfp4", "model.weights",
     "model.weights=dense"),
    (training.model_computes_as_its_family_can, "model=qwen3-8b merge.format=mxfp4", "merge.format",
     "merge.format=bf16"),
    (training.model_computes_as_its_family_can, "model=qwen3-8b merge.gguf=.", "merge.gguf", "merge.gguf=null"),
    (training.recomputed_layers_exist, "sft.gradient_checkpointing=99", "sft.gradient_checkpointing",
     "sft.gradient_checkpointing=true"),
    (training.attention_can_be_kept, "sft.keep_attention=true model.attn_implementation=eager", "sft.keep_attention",
     "sft.keep_attention=auto"),
    (training.attention_can_be_kept,
     "sft.keep_attention=true sft.gradient_checkpointing_kwargs.use_reentrant=true compute=h100x1",
     "sft.keep_attention", "sft.gradient_checkpointing_kwargs={use_reentrant:false}"),
    (training.rows_fit_the_positions, "sft.max_length=262144", "sft.max_length", "sft.max_length=131072"),
    (training.something_is_trained, "lora.target_modules=[] lora.target_parameters=null", "lora",
     "lora.target_modules=all-linear"),
    (training.flex_attention_needs_a_gpu, "compute.gib_per_gpu=null model.attn_implementation=flex_attention",
     "model.attn_implementation", "model.attn_implementation=eager"),
    (training.flex_attention_needs_a_gpu, f"{TINY} model.attn_implementation=flex_attention",
     "model.attn_implementation", "compute.gib_per_gpu=80"),
    (training.evaluation_has_what_it_needs, "sft.early_stopping_patience=2 sft.eval_strategy=no",
     "sft.early_stopping_patience", "sft.eval_strategy=steps"),
    (training.evaluation_has_what_it_needs, "sft.load_best_model_at_end=true sft.eval_strategy=no",
     "sft.load_best_model_at_end", "sft.eval_strategy=steps"),
    (training.evaluation_has_what_it_needs, "sft.early_stopping_patience=2 dataset.heldout=0.0",
     "sft.early_stopping_patience", "dataset.heldout=0.05"),
    (training.flash_attention_4_has_what_it_needs, "model.flash_attention=fa4 model.attn_implementation=eager",
     "model.flash_attention", "model.flash_attention=auto"),
    (training.flash_attention_4_has_what_it_needs, "model.flash_attention=fa4 sft.bf16=false", "model.flash_attention",
     "sft.bf16=true"),
    (training.fp8_products_have_what_they_need, "lora=none model.products=fp8", "model.products",
     "model.products=dtype"),
    (training.fp8_products_have_what_they_need, "model=qwen3-8b model.products=fp8", "model.products",
     "model.products=fp8_all"),
    (training.fp8_products_have_what_they_need, "model=olmo-2-1b model.products=fp8_all", "model.products",
     "model.products=dtype"),
    (training.fp8_products_have_what_they_need, "model=qwen3-8b lora.lora_dropout=0.1 model.products=fp8_all",
     "model.products", "lora.lora_dropout=0.0"),
    (training.fp8_products_have_what_they_need, "model.attn_implementation=flex_attention model.products=fp8_all",
     "model.products", "model.attn_implementation=ftkit_sinks"),
    (training.fp8_products_have_what_they_need,
     "model=qwen3-30b-a3b model.attn_implementation=sdpa model.products=fp8", "model.products",
     "model.attn_implementation=ftkit_varlen"),
    (training.fp8_products_have_what_they_need,
     "model=qwen3-30b-a3b model.experts_implementation=grouped_mm model.products=fp8_all", "model.products",
     "model.products=dtype"),
    (training.fp8_products_have_what_they_need, "sft.bf16=false model.products=fp8", "model.products",
     "model.products=dtype"),
    (training.fp8_products_have_what_they_need, "sft.fsdp=true compute=h100x8 model.products=fp8", "model.products",
     "model.products=dtype"),
    (training.fp8_products_have_what_they_need, "compute.gib_per_gpu=null model.products=fp8", "model.products",
     "model.products=dtype"),
    (training.mxfp4_weights_need_low_rank_experts,
     "model.weights=mxfp4 model.experts_implementation=grouped_mm", "model.weights",
     "model.experts_implementation=ftkit_lora"),
    (training.mxfp4_weights_stay_whole_and_frozen, "lora=none model.weights=mxfp4", "model.weights",
     "model.weights=dense"),
    (training.mxfp4_weights_stay_whole_and_frozen, "lora=none model.weights=mxfp4", "model.weights",
     "lora=experts"),
    (training.mxfp4_weights_stay_whole_and_frozen, "model.weights=mxfp4 sft.fsdp=true compute=h100x8",
     "model.weights", "model.weights=dense"),
    (training.sharding_has_several_processes, "sft.fsdp=true", "sft.fsdp", "compute.gpus_per_node=2"),
    (training.sharding_has_several_processes, "sft.fsdp=true", "sft.fsdp", "sft.fsdp=false"),
    (schedule.schedule_takes_its_arguments, "sft.lr_scheduler_type=cosine "
     "sft.lr_scheduler_kwargs.min_lr_rate=0.1", f"{SCHEDULE}.min_lr_rate", f"{SCHEDULE}.min_lr_rate=null"),
    (schedule.schedule_takes_its_arguments, f"{SCHEDULE}.min_lr_rate=2", f"{SCHEDULE}.min_lr_rate",
     f"{SCHEDULE}.min_lr_rate=null"),
    (schedule.schedule_takes_its_arguments, f"{SCHEDULE}.min_lr=1", f"{SCHEDULE}.min_lr",
     f"{SCHEDULE}.min_lr=null"),
    (schedule.schedule_takes_its_arguments, f"{SCHEDULE}.num_cycels=1", f"{SCHEDULE}.num_cycels",
     "did you mean num_cycles?"),
    (schedule.schedule_takes_its_arguments, f"{SCHEDULE}.min_lr_rate=0.1 {SCHEDULE}.min_lr=1e-5", SCHEDULE,
     f"{SCHEDULE}.min_lr_rate=null"),
    (schedule.schedule_takes_its_arguments, f"sft.lr_scheduler_type=polynomial {SCHEDULE}.lr_end=1e-3",
     f"{SCHEDULE}.lr_end", f"{SCHEDULE}.lr_end=null"),
    (schedule.warm_up_is_shorter_than_the_training, "sft.warmup_steps=10000 sft.max_steps=6", "sft.warmup_steps",
     "sft.warmup_steps=0.03"),
    (schedule.warm_up_is_shorter_than_the_training, "sft.warmup_steps=6 sft.max_steps=6", "sft.warmup_steps",
     "a larger sft.max_steps"),
    (schedule.warm_up_is_shorter_than_the_training, "sft.warmup_steps=1.5", "sft.warmup_steps",
     "sft.warmup_steps=2"),
    (schedule.evaluations_come_after_whole_steps, "sft.eval_steps=2.5", "sft.eval_steps", "sft.eval_steps=2"),
    (schedule.schedule_has_the_evaluations_that_it_goes_by,
     "sft.lr_scheduler_type=reduce_lr_on_plateau sft.eval_strategy=no", "sft.lr_scheduler_type",
     "sft.eval_strategy=steps"),
    (schedule.schedule_has_the_evaluations_that_it_goes_by,
     "sft.lr_scheduler_type=greedy dataset.heldout=0.0", "sft.lr_scheduler_type", "dataset.heldout=0.05"),
    (platform.registered_model_needs_a_tokenizer_here, f"{TINY} {REGISTERED}", "model.pretrained_model_name_or_path",
     "compute=h100x1, or the hub id"),
    (platform.registered_model_needs_a_tokenizer_here, f"{REGISTERED} stage=prepare", "model.tokenizer",
     "model.tokenizer=openai/gpt-oss-20b"),
    (training.max_steps_is_positive_or_minus_one, "sft.max_steps=0", "sft.max_steps",
     "sft.max_steps=-1, which goes by"),
    (training.max_steps_is_positive_or_minus_one, "sft.max_steps=-2", "sft.max_steps",
     "sft.max_steps=-1, which goes by"),
    (llama_cpp.converter_can_be_run, "merge.gguf=../llama.cpp", "merge.gguf", "merge.gguf=null"),
    (llama_cpp.converter_can_be_run, f"{TINY} stage=merge merge.gguf=empty", "merge.gguf", "merge.gguf=null"),
    (llama_cpp.converter_can_be_run, f"{TINY} stage=merge merge.gguf=lama.cpp", "merge.gguf",
     "did you mean merge.gguf=llama.cpp?"),
    (llama_cpp.converter_can_be_run, f"{TINY} stage=merge merge.gguf=none/x.py", "merge.gguf", "merge.gguf=null"),
    (llama_cpp.converter_can_be_run, f"{TINY} stage=merge merge.gguf=rows.jsonl", "merge.gguf", "merge.gguf=null"),
    (evaluation.gate_can_be_read, "registration.gate=['right']", "registration.gate",
     'registration.gate=["thinks_in_japanese >= 0.95"]'),
    (evaluation.gate_can_be_read, "registration.gate=['pass@4>=base']", "registration.gate", "evaluation.pass_at=[4]"),
    (evaluation.as_many_samples_as_pass_at_k_needs, f"{TINY} evaluation.pass_at=[1,4] evaluation.samples=2",
     "evaluation.pass_at", "evaluation.samples=4 evaluation.temperature=1.0"),
    (evaluation.task_file_exists, f"{TINY} evaluation.guard.path=rwos.jsonl stage=evaluate", "evaluation.guard.path",
     "did you mean evaluation.guard.path=rows.jsonl?"),
    (evaluation.guard_is_asked_here, "evaluation.guard.path=rows.jsonl", "evaluation.guard.path",
     "evaluation.guard.path=null"),
    (evaluation.language_line_is_there_to_leave_out,
     f"{TINY} evaluation.without_language_line=true evaluation.path=rows.jsonl dataset.reasoning_language=null",
     "evaluation.without_language_line", "evaluation.without_language_line=false"),
    (evaluation.gate_can_be_read, "registration.gate=['rihgt>=0.9']", "registration.gate",
     'registration.gate=["thinks_in_japanese >= 0.95"]'),
    (platform.hub_token_has_one_place, "secrets.hf_token=a secrets.hf_connection=b", "secrets",
     "secrets.hf_token=null"),
    (data.dataset_files_exist, "dataset=jsonl dataset.path=rwos.jsonl stage=prepare", "dataset.path",
     "did you mean dataset.path=rows.jsonl?"),
    (data.dataset_files_exist, "dataset=jsonl dataset.path=none/x.jsonl stage=prepare", "dataset.path",
     "give the path of your rows"),
    (data.dataset_files_exist, "dataset=jsonl dataset.path=empty stage=prepare", "dataset.path", "files are .jsonl"),
    (data.dataset_files_exist, "dataset=jsonl dataset.path=*.parquet stage=prepare", "dataset.path",
     "files are .jsonl"),
    (data.dataset_files_exist, "dataset=mix dataset.mix={a:{path:rows.jsonl},b:{path:rwos.jsonl}}",
     "dataset.mix.b.path", "did you mean dataset.mix.b.path=rows.jsonl?"),
    (data.rows_come_from_somewhere, f"{TINY} dataset.mix={{a:{{path:rows.jsonl}}}}", "dataset.path",
     "dataset.path=null"),
    (data.rows_come_from_somewhere, "dataset=mix dataset.mix={a:{path:rows.jsonl}} dataset.validation=rows.jsonl",
     "dataset.validation", "dataset.validation=null"),
    (data.rows_come_from_somewhere, "dataset=mix dataset.mix={}", "dataset.mix", "dataset.mix=null dataset.path="),
    (data.rows_come_from_somewhere, f"{TINY} dataset.path=null", "dataset.path", "dataset.path=<your rows>"),
    (data.sources_have_their_share, "dataset=mix dataset.mix={a:{path:rows.jsonl,weight:2,rows:3}}", "dataset.mix.a",
     "dataset.mix.a.rows=null"),
    (data.sources_have_their_share, "dataset=mix dataset.mix={my_answer:{path:rows.jsonl}}", "dataset.mix",
     "another name"),
    (data.sources_have_their_share,
     "dataset=mix dataset.mix={a:{path:rows.jsonl},b:{path:rows.jsonl,option:preference}}", "dataset.mix",
     "leave one out: ~dataset.mix.a"),
    (generation.rows_are_laid_out_as_those_of_one_source,
     f"{TINY} dataset=mix dataset.mix={{a:{{path:rows.jsonl}}}} stage=generate", "dataset.mix",
     "dataset.mix=null dataset.path="),
    (data.encoding_is_known, "dataset=mix dataset.mix={a:{path:rows.jsonl,encoding:cp923}}", "dataset.mix.a.encoding",
     "dataset.mix.a.encoding=cp932"),
    (data.encoding_is_known, "dataset.encoding=cp923", "dataset.encoding", "dataset.encoding=cp932"),
    (data.encoding_is_known, "dataset.encoding=base64", "dataset.encoding", "dataset.encoding="),
    (data.files_have_no_hub_settings, "dataset=jsonl dataset.path=rows.jsonl dataset.revision=v7", "dataset.revision",
     "dataset.revision=null"),
    (data.files_have_no_hub_settings, "dataset=jsonl dataset.path=rows.jsonl dataset.subset=ja", "dataset.subset",
     "dataset.subset=null"),
    (data.files_have_no_hub_settings, "dataset=jsonl dataset.path=rows.jsonl dataset.split=test", "dataset.split",
     "dataset.split=train"),
    (data.validation_files_exist, "dataset=jsonl dataset.path=rows.jsonl dataset.validation=rwos.jsonl",
     "dataset.validation", "did you mean dataset.validation=rows.jsonl?"),
    (data.columns_say_where_the_chat_is, "dataset.columns.messages=chat", "dataset.columns",
     "dataset.columns.question=null dataset.columns.answer=null"),
    (data.columns_say_where_the_chat_is, "dataset=messages dataset.path=rows.jsonl dataset.columns.thinking=t",
     "dataset.columns", "dataset.columns.thinking=null"),
    (data.columns_say_where_the_chat_is, "dataset.columns.answer=null", "dataset.columns",
     "or dataset.columns.messages=messages"),
    (evaluation.task_file_exists, f"{TINY} evaluation.path=rows.json stage=evaluate", "evaluation.path",
     "did you mean evaluation.path=rows.jsonl?"),
    (evaluation.task_file_exists, f"{TINY} evaluation.path=empty stage=evaluate", "evaluation.path",
     "a file of questions and answers is .jsonl"),
    (evaluation.lm_eval_is_there_with_its_tasks, f"{TINY} evaluation.lm_eval.tasks=[gsm8k] stage=evaluate",
     "evaluation.lm_eval", "lm-eval/bin/pip install lm-eval, then evaluation.lm_eval.python="),
    (evaluation.lm_eval_is_there_with_its_tasks, f"{TINY} evaluation.lm_eval.tasks=[a] evaluation.lm_eval.python=none "
     "stage=evaluate", "evaluation.lm_eval", "python -m venv lm-eval"),
    (evaluation.lm_eval_is_there_with_its_tasks, f"{TINY} evaluation.lm_eval.tasks=[a] evaluation.lm_eval.python="
     f"{sys.executable} stage=evaluate", "evaluation.lm_eval", f"{sys.executable} -m pip install lm-eval"),
    (evaluation.lm_eval_is_there_with_its_tasks, f"{TINY} evaluation.lm_eval.tasks=[a] evaluation.lm_eval.include_path="
     "emtpy stage=evaluate", "evaluation.lm_eval.include_path", "did you mean empty?"),
    (evaluation.lm_eval_is_there_with_its_tasks, f"{TINY} evaluation.lm_eval.tasks=[a] evaluation.lm_eval.include_path="
     "empty stage=evaluate", "evaluation.lm_eval.include_path", "a file like mine.yaml"),
    (evaluation.lm_eval_is_there_with_its_tasks, "evaluation.lm_eval.tasks=[gsm8k,gsm8k]", "evaluation.lm_eval",
     "name each task once"),
    (evaluation.lm_eval_is_there_with_its_tasks, "evaluation.lm_eval.limit=5", "evaluation.lm_eval.limit",
     "evaluation.lm_eval.tasks=[gsm8k]"),
    (evaluation.lm_eval_is_there_with_its_tasks, "evaluation.lm_eval.tasks=[gsm8k] stage=evaluate",
     "evaluation.lm_eval",
     "/opt/lm-eval/bin/pip install lm-eval"),
    (evaluation.gate_can_be_read, 'registration.gate=["lm_eval.gsm8k.exact_match>=base"]', "registration.gate",
     "evaluation.lm_eval.tasks=[gsm8k]"),
    (evaluation.several_samples_need_a_temperature, "evaluation.samples=4", "evaluation.samples",
     "evaluation.temperature=1.0"),
    (serving.invoke_has_one_request, f"{TINY} stage=invoke invoke.prompt=null", "invoke", "invoke.file=request.json"),
    (data.model_folder_exists, f"{TINY} model.pretrained_model_name_or_path=./modle",
     "model.pretrained_model_name_or_path",
     "did you mean model.pretrained_model_name_or_path=model?"),
    (data.model_folder_exists, "model.tokenizer=/nowhere/at/all", "model.tokenizer", "the folder of your model"),
    (data.dataset_files_exist, "dataset=jsonl dataset.path=rwos.jsonl", "dataset.path",
     "did you mean dataset.path=rows.jsonl?"),
    (evaluation.task_file_exists, "evaluation.path=rwos.jsonl", "evaluation.path",
     "did you mean evaluation.path=rows.jsonl?"),
    (training.target_modules_exist, "lora.target_modules=q_proj", "lora.target_modules",
     "lora.target_modules=[q_proj]"),
    (training.target_modules_exist, "lora.target_modules=[k_prj]", "lora.target_modules",
     "did you mean lora.target_modules=[k_proj]?"),
    (training.target_modules_exist, "lora.target_modules=[lm_head]", "lora.target_modules",
     "lora.target_modules=all-linear"),
    (training.target_modules_exist, "lora.target_modules=[up_proj]", "lora.target_modules", "lora=experts"),
    (training.target_modules_exist, "lora.target_modules=all", "lora.target_modules", "lora.target_modules=all-linear"),
    (training.target_modules_exist, 'lora.target_modules="*q"', "lora.target_modules",
     "lora.target_modules=all-linear"),
    (serving.invoke_has_one_request, f"{TINY} stage=invoke invoke.file=request.json", "invoke", "invoke.file=null"),
    (serving.azure_alone_has_its_options, f"{TINY} deployment.mirror_traffic=10", "deployment.mirror_traffic",
     "deployment.mirror_traffic=0"),
    (serving.azure_alone_has_its_options, f"{TINY} deployment.public_network_access=disabled",
     "deployment.public_network_access", "deployment.public_network_access=null"),
    (autoscale.autoscale_is_of_managed_endpoints, f"{TINY} {SCALE}max_instances=4", f"{SCALE}max_instances",
     f"{SCALE}max_instances=null"),
    (autoscale.autoscale_has_room, f"{SCALE}min_instances=1", f"{SCALE}min_instances", f"{SCALE}max_instances=2"),
    (autoscale.autoscale_has_room, f"{SCALE}max_instances=1", f"{SCALE}max_instances", f"{SCALE}max_instances=2"),
    (autoscale.autoscale_has_room, f"{SCALE}min_instances=2 {SCALE}max_instances=4", "deployment.instance_count",
     "deployment.instance_count=2"),
    (autoscale.autoscale_has_room, f"{SCALE}max_instances=4 {SCALE}scale_out.value=4", f"{SCALE}scale_out.value",
     f"{SCALE}scale_out.value=3"),
    (autoscale.autoscale_has_thresholds, f"{SCALE}max_instances=4 {SCALE}scale_out.threshold=120",
     f"{SCALE}scale_out.threshold", f"{SCALE}scale_out.threshold=80"),
    (autoscale.autoscale_has_thresholds, f"{SCALE}max_instances=4 {SCALE}scale_in.threshold=90",
     f"{SCALE}scale_in.threshold", f"{SCALE}scale_in.threshold=26.7"),
    (autoscale.autoscale_has_thresholds,
     f"{SCALE}max_instances=4 {SCALE}metric_name=RequestLatency_P90 {SCALE}scale_out.threshold=20000",
     f"{SCALE}scale_in.threshold", f"{SCALE}scale_in.threshold=5000"),
    (platform.tags_are_not_ours, "tags.made-by=me", "tags.made-by", "another key"),
    (generation.server_can_be_asked, f"{TINY} stage=generate generate.url=http://a.example/v1", "generate.url",
     "generate.url=null"),
    (generation.server_can_be_asked, f"{TINY} stage=generate generate.source=url generate.model=m", "generate.url",
     "generate.url=http://127.0.0.1:8000/v1"),
    (generation.run_is_there, f"{TINY} stage=generate generate.source=bsae", "generate.source",
     "did you mean generate.source=base?"),
    (generation.questions_are_there, f"{TINY} stage=generate generate.path=rwos.jsonl", "generate.path",
     "did you mean generate.path=rows.jsonl?"),
    (generation.several_samples_need_a_temperature, f"{TINY} stage=generate generate.samples=4 generate.temperature=0",
     "generate.samples", "generate.temperature=1.0"),
    (generation.rewriting_says_what, f"{TINY} stage=generate generate.rewrite=anew", "generate.rewrite",
     "generate=rewrite"),
]  # fmt: skip
"""Guard, what is typed, the key that is named, and a cure."""


@pytest.mark.usefixtures("workspace_named")
@pytest.mark.parametrize(
    ("guard", "arguments", "key", "cure"), COMBINATIONS, ids=[f"{row[0].__name__}: {row[1]}" for row in COMBINATIONS]
)
def test_combination_that_is_known_to_fail(
    guard: checks.Check, arguments: str, key: str, cure: str, in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: the check that stands beside it; no other runs here, and the cure has to pass all of them."""
    (in_empty_folder / "rows.jsonl").write_text("{}\n")
    (in_empty_folder / "empty").mkdir()
    (in_empty_folder / "llama.cpp").mkdir()
    (in_empty_folder / "model").mkdir()
    shutil.copy(asset_path("package:tiny-gpt-oss") + "/config.json", in_empty_folder / "model")
    (in_empty_folder / "llama.cpp" / llama_cpp.SCRIPT).write_text("")
    with monkeypatch.context() as patched:
        patched.setattr(checks, "CHECKS", (guard,))
        problem = refused(*arguments.split())[key]
    cures(problem, cure, arguments.split())


def test_no_check_is_without_a_test() -> None:
    elsewhere = {
        training.reentrant_checkpointing_under_ddp,
        evaluation.model_before_is_within_reach,
        platform.workspace_is_named,
        platform.nothing_of_the_environment_goes_into_jobs,
        *methods.CHECKS,
    }
    assert {row[0] for row in COMBINATIONS} | elsewhere == set(checks.CHECKS)


@pytest.mark.parametrize("value", ["a" * 5000, "'~nobody-of-this-name/x'"])
@pytest.mark.parametrize("key", ["dataset.path", "evaluation.path", "merge.gguf", "run.outputs", "model.tokenizer"])
def test_what_can_be_no_path_is_said_and_nothing_else_looks_there(key: str, value: str):
    """Guard: paths_can_be_looked_up."""
    with pytest.raises(ConfigError) as refused:
        resolve(["experiment=tiny", "stage=plan", f"{key}={value}"])
    (problem,) = refused.value.problems
    assert problem.key == key and "is no path" in problem.what and len(problem.what) < 300


def test_a_path_is_not_looked_up_in_a_group_that_is_faulty_itself():
    with pytest.raises(ConfigError) as refused:
        resolve(["experiment=tiny", "stage=plan", f"evaluation.path={'a' * 5000}", "evaluation.samples=none"])
    assert [problem.key for problem in refused.value.problems] == ["evaluation.samples"]
