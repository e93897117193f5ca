"""The groups whose options are files in ``conf/<group>/``, one model each: types, ranges and what each key does.

Keys keep the names of the library that they are handed to: ``sft`` TRL's SFTConfig, ``lora`` PEFT's LoraConfig.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ftkit.config.fields import DATE, SHM_SIZE, AssetName, EndpointName, Fraction, Group, PositiveInt
from ftkit.config.lm_eval import LmEval

GROUPS = ("model", "dataset", "lora", "sft", "compute", "deployment", "evaluation")
"""Config groups whose options are files in ``conf/<group>/``."""


class Architecture(Group):
    """Shape of the model, under transformers' names: what ``plan`` calculates with before any weight is loaded."""

    num_hidden_layers: PositiveInt
    """Decoder layers."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    intermediate_size: PositiveInt
    """Width of one expert."""
    num_local_experts: PositiveInt
    """Experts in a layer."""
    num_experts_per_tok: PositiveInt
    """Experts that each token is routed to."""
    num_attention_heads: PositiveInt
    """Query heads."""
    num_key_value_heads: PositiveInt
    """Key and value heads."""
    head_dim: PositiveInt
    """Width of one head."""
    vocab_size: PositiveInt
    """Rows of the embedding and of the output projection."""


class Model(Group):
    name: AssetName
    """Short name; the default run and model names are made from it."""
    pretrained_model_name_or_path: str
    """Hub id, folder, ``azureml:<model>:<version>``, or ``package:<name>`` for a model that ships with ftkit."""
    tokenizer: str | None
    """Hub id or folder of the tokenizer where the model itself cannot be read from here; null takes the model's own."""
    folder: str | None
    """Set inside an Azure ML job: where the model is mounted."""
    license: str
    """Licence of the weights, as the hub abbreviates it (apache-2.0, mit, other), for the card of the merged model."""
    revision: str | None
    """Branch, tag or commit on the hub; null takes the newest."""
    dtype: Literal["bfloat16", "float32"]
    """Precision of the base weights. bfloat16 halves the memory; float32 suits a CPU."""
    weights: Literal["dense", "mxfp4"]
    """dense: experts unpacked to ``dtype``. mxfp4: kept packed, in a quarter of the memory, some 13 % slower."""
    attn_implementation: Literal["eager", "flex_attention", "ftkit_sinks"]
    """ftkit_sinks joins documents without padding; flex_attention needs a CUDA GPU; eager's memory grows by length²."""
    experts_implementation: Literal["eager", "batched_mm", "grouped_mm", "ftkit_lora"]
    """ftkit_lora keeps adapters low-rank; with the others PEFT builds the whole adapted weight in each pass."""
    architecture: Architecture


class Columns(Group):
    """Where a row's parts stand. Give question and answer, or messages."""

    question: str | None
    """Column with the question: text, or a list of messages that ends with the user's."""
    answer: str | None
    """Column with the answer: text, or a list of messages; ``<think>…</think>`` may stand before the final answer."""
    thinking: str | None
    """Column with the thinking, when the answer does not carry it in ``<think>…</think>``."""
    messages: str | None
    """Column with a whole chat, laid out as dataset.turns says; instead of question and answer."""
    reasoning_effort: str | None
    """Column that sets dataset.reasoning_effort for each row; where a row has none, the setting holds."""
    reasoning_language: str | None
    """Column that sets dataset.reasoning_language for each row; where a row has none, the setting holds."""
    persona: str | None
    """Column that sets dataset.persona for each row; where a row has none, the setting holds."""


class Turns(Group):
    """How one message of a chat is laid out."""

    role: str
    """Key of the message that says who speaks."""
    content: str
    """Key of its text."""
    thinking: str
    """Key of an assistant's thinking; without it, ``<think>…</think>`` is looked for in the text."""
    roles: dict[str, Literal["system", "developer", "user", "assistant"]]
    """Names of roles in the data and what they mean; the four names themselves need no entry."""


class Dataset(Group):
    name: AssetName
    """Short name, shown by ``plan``."""
    path: str
    """Hub id; a .jsonl, .json, .csv, .tsv or .parquet file, also with .gz; a folder or a pattern (\"data/*.jsonl\") of
    them; or ``package:<file>`` for data that ships with ftkit."""
    split: str
    """Split to read from a hub data set; files have one."""
    revision: str | None
    """Branch, tag or commit on the hub; null takes the newest."""
    folder: str | None
    """Set inside an Azure ML job: where the published rows are mounted."""
    columns: Columns
    turns: Turns
    asset_name: AssetName
    """Name of the data asset, and of the parquet and JSONL files in it."""
    reasoning_language: str | None
    """Written as ``reasoning language: …`` at the top of the system message; null leaves the line out."""
    persona: str | None
    """Second paragraph of the system message; null leaves it out."""
    reasoning_effort: Literal["low", "medium", "high"]
    """The effort that Harmony's system block asks for."""
    current_date: Annotated[str, Field(pattern=DATE)]
    """Date that Harmony's system block gives; pinned, so that the same rows give the same tokens on any day."""
    thinking: Literal["required", "optional"]
    """required refuses an answer without thinking; optional trains such a row on its final answer alone."""
    special_tokens: Literal["refuse", "neutralise"]
    """Rows with text such as <|end|>: refuse them, or keep them with that text as plain characters."""
    heldout: Annotated[float, Field(ge=0, lt=1)]
    """Share of the rows kept out of training, chosen by a hash of the question."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)]
    """Likeness (Jaccard, on runs of 5 characters) from which two questions share a side; 1 joins equal ones only."""
    overlength: Literal["drop", "error", "truncate-thinking"]
    """Rows longer than sft.max_length: leave out and count, stop, or cut the end of the thinking, never the answer."""
    max_rows: PositiveInt | None
    """Read only the first rows; null reads all."""
    num_proc: PositiveInt | None
    """Processes that prepare rows; null takes one a core. The rows are the same with any number."""


class Lora(Group):
    r: PositiveInt
    """Rank. Parameters and their memory grow with it."""
    lora_alpha: PositiveInt
    """Scale of the update, divided by r (or by its root with use_rslora)."""
    lora_dropout: Fraction
    """Dropout before A; must be 0 when experts are adapted."""
    target_modules: str | list[str]
    """Linear modules to adapt; all-linear means q, k, v and o of every layer."""
    target_parameters: list[str] | None
    """Expert tensors to adapt, by the end of their names; null adapts none."""
    use_rslora: bool
    """Scale by alpha/√r: keeps the update's size when r grows."""
    init_lora_weights: bool | Literal["gaussian"]
    """true draws A as Kaiming-uniform, gaussian as normal; B starts at zero either way."""


class Sft(Group):
    max_length: PositiveInt
    """Longest row in tokens; a packed row is filled up to it."""
    packing: bool
    """true fills each row with documents that cannot see each other; false takes one a row: slower, a lower peak."""
    per_device_train_batch_size: PositiveInt
    """Rows on each GPU at a time."""
    gradient_accumulation_steps: PositiveInt
    """Batches whose gradients are added before one optimiser step."""
    num_train_epochs: Annotated[float, Field(gt=0)]
    """Passes over the training rows; sft.max_steps overrides it when positive."""
    max_steps: int
    """Optimiser steps; -1 goes by num_train_epochs."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Highest rate, reached after the warm-up."""
    lr_scheduler_type: Literal["cosine_with_min_lr", "cosine", "linear", "constant", "constant_with_warmup"]
    """Shape of the rate after the warm-up."""
    lr_scheduler_kwargs: dict[str, Any]
    """Arguments of that shape; min_lr_rate is the final share of the highest rate, null takes one out."""
    warmup_steps: Annotated[float, Field(ge=0)]
    """Steps of rising rate; below 1 it is a share of all steps."""
    optim: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"]
    """Optimiser; its state is kept for the adapter only."""
    weight_decay: Annotated[float, Field(ge=0)]
    """Pull of the trained weights towards zero."""
    max_grad_norm: Annotated[float, Field(ge=0)]
    """Gradients longer than this are scaled down; 0 leaves them."""
    bf16: bool
    """Compute in bfloat16 with float32 sums; false suits a CPU."""
    gradient_checkpointing: bool
    """Recompute activations in the backward pass: about a third slower, far less memory."""
    gradient_checkpointing_kwargs: dict[str, Any]
    """use_reentrant: true fails under DDP when experts carry LoRA."""
    ddp_find_unused_parameters: bool | None
    """false skips a search that DDP makes at every step; null means true for a PEFT model."""
    fsdp: bool
    """true shards weights, gradients and optimiser over all processes (FSDP2); false gives each all of them (DDP)."""
    router_aux_loss_coef: Annotated[float, Field(ge=0)]
    """Weight of the router's balance loss; 0 trains on the answers alone."""
    logging_steps: PositiveInt
    """Steps between two lines of metrics."""
    save_steps: PositiveInt
    """Steps between two checkpoints."""
    save_minutes: Annotated[float, Field(gt=0)] | None
    """A checkpoint at the end of the step, too, when the last one is so many minutes old; null goes by steps alone."""
    save_total_limit: PositiveInt
    """Checkpoints kept, and besides them the one with the lowest held-out loss; others are deleted."""
    eval_strategy: Literal["no", "steps", "epoch"]
    """When to measure the loss on the held-out rows; the last step is always measured, unless it is no."""
    eval_steps: Annotated[float, Field(gt=0)]
    """Steps between two evaluations; below 1 it is a share of all steps."""
    early_stopping_patience: PositiveInt | None
    """Stop after so many evaluations without a lower held-out loss; null trains to the end."""
    load_best_model_at_end: bool
    """true makes the adapter of the evaluation with the lowest held-out loss; false that of the last step."""
    verify_packing: bool
    """true compares the first packed row with its documents alone before training, and stops if they differ."""
    seed: Annotated[int, Field(ge=0)]
    """Seed of the adapter's start and of the order of the rows."""


class Compute(Group):
    platform: Literal["local", "azureml"]
    """local: this machine. azureml: a job on Azure ML."""
    instance_type: str | None
    """VM size on Azure ML, Standard_NC40ads_H100_v5 for instance; null on the local platform."""
    nodes: PositiveInt
    """Machines (the NUM_NODES of other kits)."""
    gpus_per_node: PositiveInt
    """Processes on each machine, one for each GPU; on a machine without GPUs each is a CPU process."""
    cluster: str | None
    """Compute cluster of the workspace; null takes serverless compute of instance_type."""
    spot: bool
    """true takes spot machines: cheaper, and a job that is evicted goes on from its last checkpoint."""
    timeout_hours: Annotated[float, Field(gt=0)]
    """Hours after which Azure ML ends the job."""
    shm_size: Annotated[str, Field(pattern=SHM_SIZE)]
    """Shared memory of the job's containers."""
    experiment_name: AssetName
    """Azure ML experiment that jobs are listed under."""
    sweep: Literal["launcher", "native"]
    """What runs a sweep on Azure ML. launcher: hydra/launcher=azureml, a job for each combination. native: one sweep
    job of Azure ML's, which ends trials early whose loss is worse than the others' median."""
    max_concurrent_trials: PositiveInt
    """Trials of a native sweep that run at a time."""
    gib_per_gpu: Annotated[float, Field(gt=0)] | None
    """Memory of one GPU in GiB, against which plan holds its prediction; null when there is none."""
    usd_per_hour: Annotated[float, Field(ge=0)] | None
    """Price of one node for an hour; plan and records calculate costs with it."""
    environment_variables: dict[str, str]
    """Set for the training processes, PYTORCH_CUDA_ALLOC_CONF for instance. Never put a secret here."""


class Deployment(Group):
    gate: list[str]
    """Rules that evaluate's figures must keep before register: thinks_in_japanese >= 0.95, right >= base."""
    platform: Literal["local", "azureml"]
    """local: a server on this machine's loopback. azureml: a managed online endpoint."""
    server: Literal["score", "vllm"]
    """score: ftkit's own score.py on Azure ML's inference server. vllm: OpenAI-compatible; a container
    of it on Azure ML, the vllm that is installed here on the local platform."""
    image: str | None
    """Container image of deployment=vllm; null for score and on the local platform."""
    endpoint_name: EndpointName
    """Name of the endpoint, 3 to 32 letters, digits and hyphens."""
    deployment_name: EndpointName
    """Name of the first deployment; on Azure ML the next version takes the other of blue and green."""
    auth_mode: Literal["key", "aad_token"]
    """What a request to a managed endpoint proves itself with: a key, or a token of Microsoft Entra."""
    instance_type: str | None
    """VM size on Azure ML; null on the local platform."""
    instance_count: PositiveInt
    """Instances behind the endpoint; on the local platform processes behind one port, each with the whole model."""
    adapters: dict[AssetName, str]
    """Local platform: serve the base model and adapters of runs in place of the merged model; requests name one in
    ``model``. By name, a run's folder or an adapter's: {ja: outputs/ja, law: outputs/law}."""
    port: Annotated[int, Field(ge=0, le=65535)]
    """Port on 127.0.0.1 for the local platform; 0 takes a free one."""
    startup_timeout_s: PositiveInt
    """Seconds that the model may take to load before the deployment counts as failed."""
    request_timeout_ms: Annotated[int, Field(gt=0, le=180000)]
    """Longest request in milliseconds; Azure ML allows 180000."""
    max_concurrent_requests_per_instance: PositiveInt
    """Requests that one instance takes at a time; score answers up to 32 of them together, in one batch."""
    rollout: list[Annotated[int, Field(ge=1, le=100)]]
    """Percent of the traffic that a new version gets one after the other, checked at each; the last is 100."""
    keep_failed: bool
    """true leaves a failed deployment to look at, where it costs money; false deletes it once its log is printed."""


class TaskColumns(Group):
    question: str
    """Column with the question."""
    answer: str
    """Column with the answer that is expected."""


class Evaluation(Group):
    name: AssetName
    """Short name of the questions, for the report."""
    path: str | None
    """A .jsonl, .json, .tsv, .csv or .parquet file with a question and an answer a row; null asks the held-out rows."""
    folder: str | None
    """Set inside an Azure ML job: where that file, or the folder of lm-eval's tasks, is mounted."""
    header: list[str] | None
    """Names of a .tsv's or .csv's columns; null takes them from its first line."""
    columns: TaskColumns
    adapter: bool
    """true asks the base with its unmerged adapter as well: it shows what merging and its rounding have changed."""
    match: Literal["exact", "last-number", "contains"]
    """When an answer is right. exact: the same text, widths and white space aside. last-number: its last number is the
    expected one's last. contains: the expected text stands somewhere in it."""
    questions: PositiveInt
    """Questions to ask at the most."""
    samples: PositiveInt
    """Answers to each question, at temperature."""
    temperature: Annotated[float, Field(ge=0, le=2)]
    """0 takes the likeliest token each time; above, tokens are drawn."""
    seed: Annotated[int, Field(ge=0)]
    """Seed of what is drawn; the same seed gives the same answers."""
    max_new_tokens: PositiveInt
    """Longest answer in tokens, thinking included."""
    batch_size: PositiveInt
    """Questions that are answered at a time."""
    lm_eval: LmEval
