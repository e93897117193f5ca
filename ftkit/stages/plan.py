"""stage=plan: what would run and where, batch, steps, parameters, memory, time and cost, problems; runs nothing.

With check=true it asks Azure as well: credential, workspace, VM sizes, quota, prices.

python -m ftkit stage=plan compute=h100x2 sft.packing=false
python -m ftkit stage=plan check=true
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from ftkit import records
from ftkit.config.places import place_of
from ftkit.config.schema import Config
from ftkit.console import console
from ftkit.errors import FtkitError, StageError
from ftkit.lineage import context_of, find, folder_of, origin_of, up_to_date
from ftkit.platforms.azureml import AzureML
from ftkit.stages import BY_NAME, Context, Made, Stage
from ftkit.training.footprint import CHECKPOINT_BYTES, GIB, adapter_parameters, footprint, model_parameters
from ftkit.training.savings import savings
from ftkit.training.trained import folder_name


def run(context: Context) -> Made:
    """Print the plan; the configuration has passed its checks already.

    Raises:
        StageError: with check=true, when Azure lacks something.
    """
    config, out = context.config, console()
    out.print(Text.assemble(("run  ", "dim"), (config.run.name, "bold"), f"   {folder_of(config)}"), soft_wrap=True)
    out.print(_stage_table(config))
    for label, text in _figures(config):
        out.print(Text.assemble((f"{label:<13}", "bold"), text), soft_wrap=True)
    warnings = list(_warnings(config))
    for warning in warnings:
        out.print(Text.assemble((f"{'warning':<13}", "bold yellow"), warning), soft_wrap=True)
    out.print(Text("no problems" if not warnings else "no errors in the configuration"))
    if config.check:
        _ask_azure(context)
    return Made("")


VERDICTS = {"ok": Text("ok", style="green"), "wrong": Text("WRONG", style="bold red"), "unknown": Text("?", "yellow")}


def _ask_azure(context: Context) -> None:
    """Print what Azure says of all that the stages will need.

    Raises:
        StageError: something is wrong.
    """
    config, out = context.config, console()
    if "azureml" not in (config.compute.platform, config.deployment.platform):
        out.print(Text("check=true has nothing to ask Azure: compute and deployment are on this machine"))
        return
    findings = AzureML(config, context.run_folder).check()
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, show_header=False)
    for finding in findings:
        cure = Text(f"cure: {finding.cure}" if finding.cure else "", style="dim")
        table.add_row(Text(finding.what, style="bold"), VERDICTS[finding.verdict], Text(finding.found), cure)
    out.print(Text("\non Azure, now"))
    out.print(table)
    if wrong := [finding.what for finding in findings if finding.verdict == "wrong"]:
        raise StageError(f"{len(wrong)} of {len(findings)} checks failed: {', '.join(wrong)}", cure="see the table")


def _stage_table(config: Config) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    for heading in ("stage", "where", "makes", "now"):
        table.add_column(heading, overflow="fold")
    for name in config.life_cycle:
        stage = BY_NAME[name]
        table.add_row(Text(name, style="bold"), _where(stage, config), _makes(stage, config), _status(config, stage))
    return table


def _where(stage: Stage, config: Config) -> str:
    place = place_of(stage.name, config)
    if place != "azureml":
        several = stage.name == "train" and config.processes > 1
        return f"this machine, {config.processes} processes" if several else "this machine"
    if stage.name in ("train", "merge", "evaluate"):
        return f"azureml  {config.compute.nodes} × {config.compute.instance_type}"
    if stage.name == "deploy":
        return f"azureml  {config.deployment.instance_count} × {config.deployment.instance_type}"
    return "azureml"


def _makes(stage: Stage, config: Config) -> str:
    if stage.name == "environment" and place_of("environment", config) == "azureml":
        return f"images {config.environment.train}, {config.environment.serve}"
    return stage.makes.format(
        asset=config.dataset.asset_name,
        trained=folder_name(config),
        merged="merged/, merged.gguf" if config.merge.gguf else "merged/",
        model=config.registration.model_name,
        endpoint=config.deployment.endpoint_name,
    )


def _status(config: Config, stage: Stage) -> str:
    if stage.always:
        return "runs each time"
    if records.read(folder_of(config), stage.name) is None:
        return "would run"
    try:
        context = context_of(config, stage, origin_of(config, stage), lambda _: None)
        return "up to date" if up_to_date(context, stage, ask_azure=False) else "changed: would run again"
    except FtkitError:
        return "changed before it: would run again"


def _figures(config: Config) -> Iterator[tuple[str, str]]:
    sft, arch = config.sft, config.model.architecture
    gpus = "1 process" if config.processes == 1 else f"{config.processes} processes"
    yield (
        "batch",
        f"{gpus} × {_rows(sft.per_device_train_batch_size)} × {sft.gradient_accumulation_steps} accumulated = "
        f"{_rows(config.rows_per_step)} a step      "
        + (
            f"packed to {sft.max_length:,} tokens"
            if sft.packing
            else f"packing off: padded, at most {sft.max_length:,} tokens"
        ),
    )
    yield "steps", _steps(config)
    adapter = adapter_parameters(config)
    if config.lora is None:
        yield "adapter", f"none: all of {model_parameters(arch):,} parameters are trained, but for the router's"
    else:
        yield (
            "adapter",
            f"{adapter.total:,} trained parameters (attention {adapter.attention:,} in {adapter.attention_modules} "
            f"modules, experts {adapter.experts:,} in {adapter.expert_tensors} tensors), rank {config.lora.r}; "
            f"the base has {model_parameters(arch):,}",
        )
    yield "checkpoints", _checkpoints(config)
    yield "memory", _memory(config)
    yield "time, cost", _time_and_cost(config)


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
    prepared = _prepared(config)
    if prepared is None:
        known = f"{config.sft.max_steps:,} (sft.max_steps)" if config.sft.max_steps > 0 else "not known"
        return f"{known}; rows and tokens are known once stage=prepare has run"
    rows, tokens = prepared["training_rows"], prepared["tokens"]
    filled = math.ceil(tokens / config.sft.max_length) if config.sft.packing else rows
    count = planned_steps(config, filled)
    packed = f" in about {filled:,} packed rows" if config.sft.packing else ""
    return f"{count:,} for {config.sft.num_train_epochs:g} epochs of {rows:,} rows, {tokens:,} tokens{packed}"


def planned_steps(config: Config, rows: int) -> int:
    """Optimiser steps for so many rows, after packing."""
    if config.sft.max_steps > 0:
        return config.sft.max_steps
    return math.ceil(math.ceil(rows / config.rows_per_step) * config.sft.num_train_epochs)


def _memory(config: Config) -> str:
    peak = footprint(config)
    parts = (
        f"weights {peak.weights / GIB:.1f}, {'adapter' if config.lora else 'gradients'} and optimiser "
        f"{peak.optimiser / GIB:.1f}, activations {peak.activations / GIB:.1f}, "
        f"working set {peak.working_set / GIB:.1f}"
    )
    if config.sft.fsdp or config.lora is None:
        parts += "; added up, not measured"
    if config.compute.gib_per_gpu is None:
        return f"about {peak.total / GIB:.1f} GiB of this machine's memory for each process: {parts}"
    return f"{peak.total / GIB:.1f} of {config.compute.gib_per_gpu:g} GiB a GPU: {parts}"


def _time_and_cost(config: Config) -> str:
    record = records.read(folder_of(config), "train")
    prepared = _prepared(config)
    if record is None or prepared is None or "tokens_per_s" not in record.result:
        return "not known: no rate has been measured for this setting" + (
            "" if config.compute.usd_per_hour else "; set compute.usd_per_hour for a cost"
        )
    rate = record.result["tokens_per_s"]
    hours = prepared["tokens"] * config.sft.num_train_epochs / rate / 3600
    cost = config.compute.usd_per_hour and hours * config.compute.nodes * config.compute.usd_per_hour
    priced = f", {cost:.2f} USD" if cost else "; set compute.usd_per_hour for a cost"
    return f"about {_duration(hours)} at the {rate:,.0f} tokens/s of this run's last training{priced}"


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
        return dict(find(config, BY_NAME["prepare"], "plan").record.result)
    except FtkitError:
        return None


def _warnings(config: Config) -> Iterator[str]:
    peak, has = footprint(config), config.compute.gib_per_gpu
    if has is None or peak.total / GIB <= has:
        return
    yield f"{peak.total / GIB:.1f} GiB will not fit in {has:g} GiB"
    for saving in savings(config, longest=(_prepared(config) or {}).get("longest")):
        fits = "" if saving.needs > has else ", fits"
        yield f"{saving.override}: {saving.needs:.1f} GiB{fits} (saves {saving.saves:.1f} GiB; {saving.costs})"
    if peak.weights / GIB > has and not config.sft.fsdp:
        yield f"each GPU holds all weights, {peak.weights / GIB:.1f} GiB: it takes larger GPUs or a smaller model"
