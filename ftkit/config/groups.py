"""The groups whose options are files in ``conf/<group>/``, one model each: types, ranges and what each key does.

Keys keep the names of the library that they are handed to: ``sft`` TRL's SFTConfig, ``lora`` PEFT's LoraConfig.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from ftkit.config.autoscale import Autoscale
from ftkit.config.fields import (
    AssetName,
    EndpointName,
    EngineArgument,
    Fraction,
    Group,
    HostName,
    IdentityId,
    Origin,
    PositiveInt,
    VariableName,
)
from ftkit.config.lm_eval import LmEval

GROUPS = ("model", "dataset", "lora", "method", "sft", "compute", "deployment", "evaluation", "generate")
"""Config groups whose options are files in ``conf/<group>/``."""


Schedule = Literal[
    "cosine_with_min_lr",
    "cosine",
    "linear",
    "constant",
    "constant_with_warmup",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "reduce_lr_on_plateau",
    "greedy",
]
"""transformers' ``SchedulerType``."""


class Architecture(Group):
    """Shape of the model, under transformers' names: what ``plan`` calculates with before any weight is loaded."""

    model_type: str
    """Family, as transformers names it and the checkpoint's config.json says."""
    num_hidden_layers: PositiveInt
    """Decoder layers."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    intermediate_size: PositiveInt
    """Width of the MLP, or of one expert."""
    num_local_experts: PositiveInt | None
    """Experts in a layer; null for a dense model."""
    num_experts_per_tok: PositiveInt | None
    """Experts that each token is routed to; null for a dense model."""
    num_attention_heads: PositiveInt
    """Query heads."""
    num_key_value_heads: PositiveInt
    """Key and value heads."""
    head_dim: PositiveInt
    """Width of one head."""
    vocab_size: PositiveInt
    """Rows of the embedding and of the output projection."""
    max_position_embeddings: PositiveInt
    """Longest sequence in tokens that the model has positions for."""
    tie_word_embeddings: bool
    """Whether the output projection is the embedding."""


class Model(Group):
    _folder: str | None = PrivateAttr(default=None)

    @property
    def folder(self) -> str | None:
        """``job.model``: where a job has mounted the model; None outside of one."""
        return self._folder

    @property
    def joins_rows(self) -> bool:
        """Whether the rows of a batch lie end to end, without padding, as ftkit's own attention takes them."""
        return self.attn_implementation.startswith("ftkit_")

    name: AssetName
    """Short name; the default run and model names are made from it."""
    pretrained_model_name_or_path: str
    """Hub id, folder, ``azureml:<model>:<version>``, or ``package:<name>`` for a model that ships with ftkit."""
    tokenizer: str | None
    """Tokenizer (hub id or folder), if the model is not readable on this machine. null: use the model's."""
    license: str
    """Licence of the weights, as the hub abbreviates it (apache-2.0, mit, other), for the card of the merged model."""
    revision: str | None
    """Branch, tag or commit on the hub; null takes the newest."""
    dtype: Literal["bfloat16", "float32"]
    """Precision of the base weights. bfloat16 halves the memory; float32 suits a CPU."""
    weights: Literal["auto", "dense", "mxfp4"]
    """dense: experts unpacked to ``dtype``. mxfp4: kept packed, in a quarter of the memory, some 10 % slower. auto:
    dense where it fits."""
    products: Literal["dtype", "fp8", "fp8_all"]
    """Products with frozen weights. dtype: in ``dtype``. fp8: the experts' in E4M3, on GPUs from Ada and Hopper on:
    faster; MXFP4's weights are exact in it, tokens and gradients are rounded to 3 bits of mantissa, adapters are not.
    fp8_all: those of attention and MLP as well, whose weights are rounded too."""
    attn_implementation: Literal["auto", "eager", "sdpa", "flex_attention", "ftkit_sinks", "ftkit_varlen"]
    """auto: the family's fastest. ftkit_sinks (of models with sinks) and ftkit_varlen join documents without padding;
    flex_attention needs a CUDA GPU; the memory of eager and of packing with sdpa grows by length²."""
    flash_attention: Literal["auto", "torch", "fa4"]
    """What computes ftkit_sinks and ftkit_varlen. auto: FlashAttention 4 on a Hopper GPU that has flash-attn-4 (ftkit's
    images do), where attention takes little more than half the time; else torch's own. fa4: nothing else."""
    experts_implementation: Literal["auto", "eager", "batched_mm", "grouped_mm", "ftkit_lora"]
    """auto: the family's fastest. ftkit_lora keeps adapters low-rank; with the others PEFT builds the whole adapted
    weight in each pass. A dense model has none: eager."""
    architecture: Architecture
    """Taken from the checkpoint's own config.json where it can be read."""


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
    """Expert tensors to adapt, by the end of their names; null adapts none; auto: all that the family has."""
    use_rslora: bool
    """Scale by alpha/√r: keeps the update's size when r grows."""
    init_lora_weights: bool | Literal["gaussian"]
    """true draws A as Kaiming-uniform, gaussian as normal; B starts at zero either way."""


class Sft(Group):
    max_length: PositiveInt
    """Longest row in tokens; a packed row is filled up to it."""
    packing: bool
    """true fills each row with documents that cannot see each other; false takes one a row: slower, a lower peak."""
    per_device_train_batch_size: PositiveInt | Literal["auto"]
    """Rows on each GPU at a time; auto: as many as make it fastest in the GPU's memory."""
    gradient_accumulation_steps: PositiveInt
    """Batches whose gradients are added before one optimiser step; with batches of auto, rows of a step on each GPU."""
    num_train_epochs: Annotated[float, Field(gt=0)]
    """Passes over the training rows; sft.max_steps overrides it when positive."""
    max_steps: int
    """Optimiser steps; -1 goes by num_train_epochs."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Highest rate, reached after the warm-up."""
    lr_scheduler_type: Schedule
    """Shape of the rate after the warm-up, one of transformers' schedules."""
    lr_scheduler_kwargs: dict[str, Any] | None
    """Arguments of that shape, such as min_lr_rate, the final share of the highest rate; null takes what it needs."""
    warmup_steps: Annotated[float, Field(ge=0)]
    """Steps of rising rate, from 1/(n+1) of it in the first of n; below 1 it is a share of all steps."""
    optim: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"]
    """Optimiser; its state is kept for the adapter only."""
    weight_decay: Annotated[float, Field(ge=0)]
    """Pull of the trained weights towards zero."""
    max_grad_norm: Annotated[float, Field(ge=0)]
    """Gradients longer than this are scaled down; 0 leaves them."""
    bf16: bool
    """Compute in bfloat16 with float32 sums; false suits a CPU."""
    gradient_checkpointing: bool | PositiveInt | Literal["auto"]
    """Recompute activations in the backward pass: about a quarter slower, far less memory. true: of all layers, a
    number: of so many. auto: of as few as the GPU's memory allows."""
    gradient_checkpointing_kwargs: dict[str, Any]
    """use_reentrant: true fails under DDP when experts carry LoRA."""
    keep_attention: bool | Literal["auto"]
    """Layers that recompute their activations keep attention's output, where it has no window: with long documents this
    is most of what recomputing costs, for 2 bytes × heads × head_dim a token and layer. auto: where it is faster and
    fits."""
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
    """Also save when this many minutes have passed since the last checkpoint. null: by steps only."""
    save_total_limit: PositiveInt
    """Checkpoints kept, and besides them the one with the lowest held-out loss; others are deleted."""
    eval_strategy: Literal["no", "steps", "epoch"]
    """When to measure the loss on the held-out rows; the last step is always measured, unless it is no."""
    eval_steps: Annotated[float, Field(gt=0)]
    """Steps between two evaluations; below 1 it is a share of all steps."""
    early_stopping_patience: PositiveInt | None
    """Stop after this many evaluations without a lower held-out loss; null trains to the end."""
    load_best_model_at_end: bool
    """true makes the adapter of the evaluation with the lowest held-out loss; false that of the last step."""
    verify_packing: bool
    """true compares the first packed row with its documents alone before training, and stops if they differ."""
    seed: Annotated[int, Field(ge=0)]
    """Seed of the adapter's start and of the order of the rows."""

    @property
    def rows_at_a_time(self) -> int:
        """Rows on each GPU at a time; 1 while it is left open."""
        return 1 if self.per_device_train_batch_size == "auto" else self.per_device_train_batch_size

    @property
    def keeps_attention(self) -> bool:
        """Whether layers that recompute keep attention's output; not while it is left open."""
        return self.keep_attention is True and self.gradient_checkpointing is not False

    @property
    def may_keep_attention(self) -> bool:
        """Whether it is left open, and anything recomputes that could."""
        reentrant = self.gradient_checkpointing_kwargs.get("use_reentrant", True)
        return self.keep_attention == "auto" and self.gradient_checkpointing is not False and not reentrant

    def recomputed_layers(self, layers: int) -> int:
        """Of so many, those that recompute their activations; all while it is left open."""
        given = self.gradient_checkpointing
        return layers if given is True or given == "auto" else int(given)


class Deployment(Group):
    platform: Literal["local", "azureml"]
    """local: a server on this machine's loopback. azureml: a managed online endpoint."""
    server: Literal["score", "vllm"]
    """score: ftkit's own score.py on Azure ML's inference server. vllm: OpenAI-compatible; a container
    of it on Azure ML, the vllm that is installed here on the local platform."""
    engine: Literal["auto", "transformers", "vllm"]
    """What score.py answers with. vllm: a vLLM of its own, which has to be installed here; a managed endpoint's image
    then holds one. auto: vllm where it is installed and there is a GPU, else transformers."""
    image: str | None
    """Container image of deployment=vllm; null for score and on the local platform."""
    endpoint_name: EndpointName
    """Name of the endpoint, 3 to 32 letters, digits and hyphens; by default the model's name without its size, and
    ``-jp-reasoner``."""
    deployment_name: EndpointName
    """Name of the first deployment; on Azure ML the next version takes the other of blue and green."""
    auth_mode: Literal["key", "aad_token"]
    """Authentication for managed endpoints: a key, or a Microsoft Entra token."""
    public_network_access: Literal["enabled", "disabled"] | None
    """Managed endpoints: disabled takes requests through a private endpoint of the workspace alone; null: enabled."""
    user_assigned_identities: list[IdentityId]
    """Managed endpoints: resource ids of identities whose rights it has; none: an identity of its own."""
    instance_type: str | None
    """VM size on Azure ML; null on the local platform."""
    instance_count: PositiveInt
    """Instances behind the endpoint; on the local platform processes behind one port, each with the whole model."""
    front_processes: Annotated[int, Field(ge=1, le=32)] | Literal["auto"]
    """Processes of score.py before the one vLLM of an instance, which share its limit of requests: one does HTTP and
    tokens for about 64 clients. auto: half the CPU cores, 8 at most; with transformers always 1."""
    autoscale: Autoscale
    """Managed endpoints: more and fewer instances by load; deployment.autoscale.max_instances=4 is enough."""
    adapters: dict[AssetName, str]
    """score.py serves the base model and adapters of runs in place of the merged model; requests name one in
    ``model``. By name, a run's folder or an adapter's: {ja: outputs/ja, law: outputs/law}. A managed endpoint gets
    both as one registered model, which is sent once."""
    port: Annotated[int, Field(ge=0, le=65535)]
    """Port on 127.0.0.1 for the local platform; 0 takes a free one."""
    startup_timeout_s: PositiveInt
    """Seconds that the model may take to load before the deployment counts as failed."""
    request_timeout_ms: Annotated[int, Field(gt=0, le=180000)]
    """Longest request in milliseconds; Azure ML allows 180000."""
    max_concurrent_requests_per_instance: PositiveInt
    """Requests that one instance takes at a time; score answers up to 32 of them together, in one batch."""
    max_input_tokens: PositiveInt
    """Longest prompt in tokens that score takes, system message and format included; vllm takes what its model does."""
    max_new_tokens: PositiveInt
    """Longest answer in tokens that score gives, thinking included; more in OpenAI's format is cut to it."""
    engine_args: dict[EngineArgument, str | int | float | bool | None]
    """Further arguments of vllm serve, {max_model_len: 32768, enable_expert_parallel: true}; null leaves out one of
    ours: tool_call_parser, enable_auto_tool_choice."""
    environment_variables: dict[VariableName, str]
    """Set for the endpoint's processes, {VLLM_LOGGING_LEVEL: DEBUG}; others inherit little. Never put a secret here."""
    cors_origins: list[Origin]
    """Pages that may ask the endpoint from a browser, [https://example.com]; ["*"] is any."""
    allowed_hosts: list[HostName]
    """Local platform: names by which the endpoint may be asked, beside 127.0.0.1 and localhost; ["*"] is any."""
    rollout: list[Annotated[int, Field(ge=1, le=100)]]
    """Percent of the traffic that a new version gets one after the other, checked at each; the last is 100."""
    mirror_traffic: Annotated[int, Field(ge=0, le=50)]
    """Managed endpoints: percent of the requests whose copies a new version gets for mirror_minutes before any of the
    traffic; nobody sees its answers to them. 0: none."""
    mirror_minutes: Annotated[float, Field(gt=0)]
    """Minutes for which it gets copies."""
    keep_failed: bool
    """true leaves a failed deployment to look at, where it costs money; false deletes it once its log is printed."""

    @property
    def managed(self) -> bool:
        """Whether it is a managed online endpoint, and no server on this machine."""
        return self.platform == "azureml"


class TaskColumns(Group):
    question: str
    """Column with the question."""
    answer: str
    """Column with the answer that is expected."""


class Guard(Group):
    path: str | None
    """A file of questions outside of what the rows are about, asked beside the others; null asks none."""
    header: list[str] | None
    """As evaluation.header."""
    columns: TaskColumns
    choices: list[str] | None
    """As evaluation.choices."""
    instruction: str | None
    """As evaluation.instruction."""
    match: Literal["exact", "last-number", "contains"]
    """As evaluation.match."""
    questions: PositiveInt
    """Questions to ask at the most."""
    may_lose: Fraction
    """Register refuses a model whose share of right answers to them is lower than the base's by more than this."""


class Evaluation(Group):
    name: AssetName
    """Short name of the questions, for the report."""
    path: str | None
    """A .jsonl, .json, .tsv, .csv or .parquet file with a question and an answer a row; null asks the held-out rows."""
    header: list[str] | None
    """Names of a .tsv's or .csv's columns; null takes them from its first line."""
    columns: TaskColumns
    choices: list[str] | None
    """Columns with the choices of a question, which are put below it, numbered from 1; the answer is then the letter,
    the number from 0 or the text of the right one, or one of these columns, and the choices are shuffled by the seed.
    The number of the right one is expected. null: the answer as it stands."""
    instruction: str | None
    """What is written below the question: how to answer. null: nothing."""
    base: Literal["start", "model"]
    """What the tuned model is compared with where method.start is set. start: the merged model of that run. model: the
    model that the option names, with which the first run of the chain began."""
    adapter: bool
    """true asks the base with its unmerged adapter as well: it shows what merging and its rounding have changed."""
    match: Literal["exact", "last-number", "contains"]
    """When an answer is right. exact: the same text, widths and white space aside. last-number: its last number is the
    expected one's last, however they are written (1,200 or 千二百). contains: the expected text stands in it."""
    questions: PositiveInt
    """Questions to ask at the most."""
    samples: PositiveInt
    """Answers to each question, at temperature."""
    pass_at: list[PositiveInt]
    """For each k of these pass@k: how probably one of k answers to a question is right, of the samples that there
    are; [1, 4]. [] measures none."""
    temperature: Annotated[float, Field(ge=0, le=2)]
    """0 takes the likeliest token each time; above, tokens are drawn."""
    seed: Annotated[int, Field(ge=0)]
    """Seed of what is drawn; the same seed gives the same answers, whatever else is asked and at a time."""
    max_new_tokens: PositiveInt
    """Longest answer in tokens, thinking included."""
    batch_size: PositiveInt
    """Questions that are answered at a time."""
    without_language_line: bool
    """true asks the same questions once more without the line 'reasoning language: …' of the system message: does the
    model think in that language when it is not told to."""
    guard: Guard
    lm_eval: LmEval
