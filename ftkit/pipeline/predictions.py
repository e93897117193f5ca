"""What ``stage=plan`` predicts: batch, steps, parameters, memory, time and cost, and what it warns of."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ftkit import records
from ftkit.config import schedules
from ftkit.config.checkpoint import can_be_read
from ftkit.config.checks.training import fp8_products_have_what_they_need
from ftkit.config.dataset import Dataset
from ftkit.config.methods import DpoMethod, GrpoMethod
from ftkit.config.schema import Config
from ftkit.config.stages import BY_NAME
from ftkit.data.row_lengths import RowLengths, at_their_longest, on_average, row_lengths
from ftkit.errors import FtkitError
from ftkit.families import family_of
from ftkit.files import size_in_words
from ftkit.models import serving_memory
from ftkit.models.speed import gpu_of, rates_of, tokens_per_second
from ftkit.models.training_memory import CHECKPOINT_BYTES, GIB, adapter_parameters, footprint, fused, model_parameters
from ftkit.models.vm_gpus import gpus_of
from ftkit.pipeline.lineage import find, folder_of
from ftkit.platforms import adapters as adapter_files
from ftkit.training.choice import Choice, choices, is_open, runner_up, settle
from ftkit.training.memory_advice import savings

HIGH_RATE = 1e-4
"""Learning rate above which a training on pairs gets a warning."""


def figures(config: Config) -> Iterator[tuple[str, str]]:
    """The lines of the plan below its table: a label, and what it says."""
    if is_open(config):
        found = choices(config, _row_lengths(config))
        yield "chosen", _chosen(config, found)
        config = found[0].config
    sft, arch = config.sft, config.model.architecture
    gpus = "1 process" if config.processes == 1 else f"{config.processes} processes"
    length = f"{sft.max_length:,} tokens"
    unpacked = "end to end" if config.model.joins_rows else "padded to the longest of a batch"
    packing = f"packed to {length}" if sft.packing else f"packing off: rows {unpacked}, of at most {length}"
    yield (
        "batch",
        f"{gpus} × {_rows(sft.rows_at_a_time)} × {sft.gradient_accumulation_steps} accumulated = "
        f"{_rows(config.rows_per_step)} a step      {packing}",
    )
    yield "model", _model(config)
    if config.method.name != "sft" or config.method.start:
        yield "method", _method(config)
    for i, source in enumerate(_sources(config)):
        yield "" if i else "sources", source
    yield "steps", _steps(config)
    yield "held out", _held_out(config)
    yield "rate", schedules.in_words(config, _step_count(config))
    adapter = adapter_parameters(config)
    if config.lora is None:
        but = ", but for the router's" if arch.num_local_experts else ""
        yield "adapter", f"none: all of {model_parameters(arch):,} parameters are trained{but}"
    elif not arch.num_local_experts:
        yield (
            "adapter",
            f"{adapter.total:,} trained parameters in {adapter.attention_modules} linear modules, "
            f"rank {config.lora.r}; the base has {model_parameters(arch):,}",
        )
    else:
        yield (
            "adapter",
            f"{adapter.total:,} trained parameters (attention {adapter.attention:,} in {adapter.attention_modules} "
            f"modules, experts {adapter.experts:,} in {adapter.expert_tensors} tensors), rank {config.lora.r}; "
            f"the base has {model_parameters(arch):,}",
        )
    if not config.compute.has_jobs and config.processes > 1:
        yield "start", _start(config)
    yield "checkpoints", _checkpoints(config)
    yield "memory", _memory(config)
    if config.deployment.managed:
        yield "serving", serving_memory.in_words(config, gpus_of(config.deployment.instance_type))
        if config.deployment.adapters:
            yield "sends", _sends(config)
        if config.deployment.autoscale.on:
            yield "autoscale", _autoscale(config)
    yield "time, cost", _time_and_cost(config)
    if config.generates:
        yield "generate", _generate(config)


def _sends(config: Config) -> str:
    """What a managed endpoint gets with adapters, and how much of it leaves this machine."""
    base, is_known = serving_memory.base_bytes(config)
    names = ", ".join(config.deployment.adapters)
    try:
        adapters = size_in_words(adapter_files.bytes_of(config))
    except FtkitError:
        adapters = "a size that is known once they are trained"
    about = "" if is_known else "about "
    name = config.model.pretrained_model_name_or_path
    return (
        f"{name}, {about}{size_in_words(base)}, and the adapters {names}, {adapters}, "
        f"as model {config.registration.model_name}-adapters; nothing if the workspace has them"
    )


def _autoscale(config: Config) -> str:
    """How many instances there would be; their price is the platform's to tell."""
    deployment = config.deployment
    text = deployment.autoscale.in_words(deployment.instance_type, deployment.instance_count)
    return text if config.check else f"{text}; check=true asks for prices and quota"


def _generate(config: Config) -> str:
    """What stage=generate would ask, of whom."""
    settings = config.generate
    words = {
        "merged": f"the merged model of {config.run.name}",
        "base": "the base",
        "url": f"{settings.model} at {settings.url}",
    }
    who = words.get(settings.source, f"the merged model of {settings.source}")
    prepared = None if settings.path else _prepared(config)
    count = min(prepared["training_rows"], settings.questions or math.inf) if prepared else settings.questions
    asked = f"{count:,} questions" if count else "all questions"
    whence = settings.path or "the training rows"
    most = f", {count * settings.samples:,} answers" if count else ""
    return (
        f"{settings.samples} × {asked} of {whence}{most} of at most {settings.max_new_tokens:,} tokens by {who}; "
        f"held-out questions are not asked"
    )


def _start(config: Config) -> str:
    """How several processes of one's own machines are started; several machines share the run's folder."""
    compute = config.compute
    if compute.nodes == 1:
        return f"stage=train starts {compute.gpus_per_node} processes, one a GPU, by torchrun"
    torchrun = f"torchrun --nnodes {compute.nodes} --nproc-per-node {compute.gpus_per_node} --rdzv-backend c10d"
    given = [word.lstrip("+") for word in config.job.overrides or ()]
    command = shlex.join(["-m", "ftkit", *(word for word in given if not word.startswith("stage=")), "stage=train"])
    return (
        f"{torchrun} --rdzv-endpoint HOST:29500 {command}   on each of the {compute.nodes} nodes, after stage=publish; "
        f"HOST is one of them, and {config.run.outputs} one folder for all"
    )


def _chosen(config: Config, found: list[Choice]) -> str:
    """What auto stands for, and the next best."""
    gpu = gpu_of(config)

    def shown(choice: Choice) -> str:
        speed = f", {_rate(choice.tokens_per_s, gpu)}" if choice.tokens_per_s else ""
        return f"{choice} ({choice.gib:.1f} GiB{speed})"

    if config.compute.gib_per_gpu is None:
        return f"{found[0]}; on a machine with a GPU train chooses by its memory"
    other = runner_up(found)
    return f"{shown(found[0])}" + (f"; next best {shown(other)}" if other else "") + _in_fp8(config, shown)


def _in_fp8(config: Config, shown: Callable[[Choice], str]) -> str:
    """What products in FP8 would give, where they can be had and are not asked for."""
    model, rates, lengths, said = config.model, rates_of(config), _row_lengths(config), ""
    if model.products != "dtype" or not (rates and rates.fp8):
        return said
    exact, all_layers = (
        config.model_copy(update={"model": model.model_copy(update={"products": products})})
        for products in ("fp8", "fp8_all")
    )
    if family_of(model.architecture.model_type).mxfp4 and not any(fp8_products_have_what_they_need(exact)):
        said += f"; with model.products=fp8, which rounds tokens and gradients, {shown(choices(exact, lengths)[0])}"
    if not any(fp8_products_have_what_they_need(all_layers)):
        said += f"; with model.products=fp8_all, which rounds weights too, {shown(choices(all_layers, lengths)[0])}"
    return said


def _rate(tokens_per_s: float, gpu: str | None) -> str:
    return f"{tokens_per_s:,.0f} tokens/s" + ("" if gpu else " if it were an H100")


def _model(config: Config) -> str:
    a = config.model.architecture
    experts = f", {a.num_local_experts} experts" if a.num_local_experts else ""
    text = f"{family_of(a.model_type).title}, {a.num_hidden_layers} layers{experts}, {model_parameters(a):,} parameters"
    if can_be_read(config.model):
        return text
    return f"{text}, as model.architecture says: its config.json is not on this machine"


def _method(config: Config) -> str:
    method = config.method
    if isinstance(method, DpoMethod):
        text = f"dpo, {' and '.join(method.losses)}, beta {method.beta:g}: two answers a row, and the reference's pass"
    elif isinstance(method, GrpoMethod):
        rewards = ", ".join(f"{name} {weight:g}" for name, weight in method.rewards.items())
        text = f"grpo, {method.num_generations} answers a question of at most {method.max_completion_length} tokens, "
        text += f"rewards {rewards}, beta {method.beta:g}, answers by {'vLLM' if method.use_vllm else 'transformers'}"
    else:
        text = "sft"
    base = config.model.pretrained_model_name_or_path
    return f"{text}; from {base}, " + (f"merged in the run {method.start}" if method.start else "the base model")


def _checkpoints(config: Config) -> str:
    sft = config.sft
    trained = adapter_parameters(config).total if config.lora else model_parameters(config.model.architecture)
    size = CHECKPOINT_BYTES * trained / GIB
    often = f"every {sft.save_steps} steps" + (f" or {sft.save_minutes:g} minutes" if sft.save_minutes else "")
    best = "" if sft.eval_strategy == "no" else ", and the best besides"
    return f"{often}; {sft.save_total_limit} are kept{best}: {size:.2f} GiB each"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _steps(config: Config) -> str:
    prepared, count = _prepared(config), _step_count(config)
    if prepared is None:
        known = "not known" if count is None else f"{count:,} (sft.max_steps)"
        return f"{known}; rows and tokens are known once stage=prepare has run"
    rows, tokens = prepared["training_rows"], prepared["tokens"]
    packed = f" in about {_filled(config, prepared):,} packed rows" if config.sft.packing else ""
    return f"{count:,} for {config.sft.num_train_epochs:g} epochs of {rows:,} rows, {tokens:,} tokens{packed}"


def _held_out(config: Config) -> str:
    dataset, prepared = config.dataset, _prepared(config)
    if prepared:
        some = (
            f"{prepared['heldout']:,} of {prepared['train'] + prepared['heldout']:,} rows"
            if prepared["heldout"]
            else ""
        )
    else:
        some = "; ".join(
            (f"{name}: " if name else "") + said
            for name, source in dataset.sources.items()
            if (said := _to_hold_out(source))
        )
    without = "no loss of held-out rows is known, evaluate needs evaluation.path"
    return some or f"nothing: {without}; dataset.heldout=0.05 holds some out"


def _to_hold_out(source: Dataset) -> str:
    if source.validation:
        return f"the rows of {source.validation}"
    return f"{100 * source.heldout:.3g} % of the questions, as near as their groups allow" if source.heldout else ""


def _sources(config: Config) -> Iterator[str]:
    """Each source of a mix: what is to be taken of it, or what prepare has taken."""
    prepared = (_prepared(config) or {}).get("sources", {})
    for name, source in (config.dataset.mix or {}).items():
        share = f"weight {source.weight:g}" if source.weight else f"{source.rows:,} rows" if source.rows else "all rows"
        text = f"{name}, {share} of {source.path}"
        if name in prepared:
            text += ": {train:,} rows to train on, {tokens:,} tokens, {heldout:,} held out, ".format(**prepared[name])
            text += "{surplus:,} left out, {rejected:,} refused".format(**prepared[name])
        yield text


def _step_count(config: Config) -> int | None:
    """Optimiser steps; None where they depend on rows that are not prepared yet."""
    prepared = _prepared(config)
    if prepared is None:
        return config.sft.max_steps if config.sft.max_steps > 0 else None
    return schedules.planned_steps(config, _filled(config, prepared))


def _filled(config: Config, prepared: Mapping[str, Any]) -> int:
    """Rows that the model sees in an epoch: packed ones, if packing is on."""
    rows = prepared["training_rows"] * config.method.rollouts
    return math.ceil(prepared["tokens"] / config.sft.max_length) if config.sft.packing else rows


def _row_lengths(config: Config) -> RowLengths | None:
    """Of the training rows, once they are prepared."""
    prepared = _prepared(config)
    if not prepared or not prepared.get("longest_rows"):
        return None
    return row_lengths(prepared["longest_rows"], prepared["tokens"], prepared["training_rows"], config)


def _memory(config: Config) -> str:
    longest = at_their_longest(config, _row_lengths(config))
    peak = footprint(longest)
    parts = (
        f"weights {peak.weights / GIB:.1f}, {'adapter' if config.lora else 'gradients'} and optimiser "
        f"{peak.optimiser / GIB:.1f}, activations {peak.activations / GIB:.1f}, "
        f"working set {peak.working_set / GIB:.1f}"
    )
    if peak.vllm:
        parts += f", vLLM {peak.vllm / GIB:.1f}"
    if config.sft.fsdp or config.lora is None:
        parts += "; added up, not measured"
    if config.compute.gib_per_gpu is None:
        return f"about {peak.total / GIB:.1f} GiB of this machine's memory for each process: {parts}"
    return f"{peak.total / GIB:.1f} of {config.compute.gib_per_gpu:g} GiB a GPU: {parts}"


def _time_and_cost(config: Config) -> str:
    record, prepared = records.read(folder_of(config), "train"), _prepared(config)
    if record is not None and prepared is not None and "tokens_per_s" in record.result:
        rate, whence = record.result["tokens_per_s"], "of this run's last training"
    else:
        rate, whence = _predicted_rate(config, prepared)
    unpriced = "" if config.compute.usd_per_hour else "; set compute.usd_per_hour for a cost"
    if rate is None:
        return f"not known: {whence}{unpriced}"
    if prepared is None:
        return f"{rate:,.0f} tokens/s {whence}; hours are known once stage=prepare has run"
    hours = _tokens_to_train(config, prepared) / rate / 3600
    cost = config.compute.usd_per_hour and hours * config.compute.nodes * config.compute.usd_per_hour
    priced = f", {cost:.2f} USD" if cost else unpriced
    return f"about {_duration(hours)} at the {rate:,.0f} tokens/s {whence}{priced}"


def _predicted_rate(config: Config, prepared: dict | None) -> tuple[float | None, str]:
    """Tokens a second of all GPUs, and by what; or None, and why not."""
    if config.method.name != "sft":
        return None, f"no rate has been measured for method={config.method.name}"
    if not fused(config):
        return None, "no rate has been measured for this setting"
    rates = rates_of(config)
    if rates is None:
        return None, "no rate has been measured for this GPU"
    document = max(1, prepared["tokens"] // prepared["training_rows"]) if prepared else None
    config = on_average(config, _row_lengths(config))
    rate = tokens_per_second(config, rates, document=document and min(document, config.sft.max_length))
    return rate, f"predicted for {config.processes} × {rates.name} ({rates.measured})"


def _tokens_to_train(config: Config, prepared: dict) -> float:
    if config.sft.max_steps > 0:
        row = config.sft.max_length if config.sft.packing else prepared["tokens"] / prepared["training_rows"]
        return config.sft.max_steps * config.rows_per_step * row
    return prepared["tokens"] * config.sft.num_train_epochs


def _duration(hours: float) -> str:
    return (
        f"{hours:.1f} hours"
        if hours >= 1
        else f"{hours * 60:.0f} minutes"
        if hours >= 1 / 30
        else f"{hours * 3600:.0f} seconds"
    )


def _prepared(config: Config) -> dict | None:
    try:
        return dict(find(config, BY_NAME["prepare"], "plan", read=False).record.result)
    except FtkitError:
        return None


def warnings(config: Config) -> Iterator[str]:
    """What is allowed and probably not meant, or will not fit."""
    config = settle(config, _row_lengths(config))
    if (steps := _step_count(config)) and (why := schedules.why_too_short(config, steps)):
        yield f"{why}; sft.warmup_steps=0.03"
    yield from _rate_warnings(config)
    yield from _memory_warnings(config)
    if config.model.products != "dtype" and (rates := rates_of(config)) and not rates.fp8:
        yield f"model.products={config.model.products}, and an {rates.name} has no FP8; model.products=dtype"
    if config.model.flash_attention == "fa4" and (rates := rates_of(config)) and not rates.scores_fa4:
        yield f"model.flash_attention=fa4, which an {rates.name} does not run; model.flash_attention=auto"
    if config.deployment.managed and (gpus := gpus_of(config.deployment.instance_type)):
        yield from serving_memory.problems(config, gpus)


def _rate_warnings(config: Config) -> Iterator[str]:
    """Rates that supervised tuning takes pull a preferred answer's likelihood down with the other's."""
    if isinstance(config.method, DpoMethod) and config.lora and config.sft.learning_rate > HIGH_RATE:
        rate = f"sft.learning_rate={config.sft.learning_rate:g}"
        yield f"{rate} is high for method=dpo, whose adapters mostly learn at 5e-6 to {HIGH_RATE:g}"


def _memory_warnings(config: Config) -> Iterator[str]:
    config = at_their_longest(config, _row_lengths(config))
    peak, has = footprint(config), config.compute.gib_per_gpu
    if has is None or peak.total / GIB <= has:
        return
    yield f"{peak.total / GIB:.1f} GiB will not fit in {has:g} GiB"
    for saving in savings(config, longest=(_prepared(config) or {}).get("longest")):
        fits = "" if saving.needs > has else ", fits"
        yield f"{saving.override}: {saving.needs:.1f} GiB{fits} (saves {saving.saves:.1f} GiB; {saving.costs})"
    if peak.weights / GIB > has and not config.sft.fsdp:
        yield f"each GPU holds all weights, {peak.weights / GIB:.1f} GiB: it takes larger GPUs or a smaller model"
