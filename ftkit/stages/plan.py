"""stage=plan: what would run and where, batch, steps, parameters, memory, time and cost, problems; runs nothing.

With check=true it asks Azure ML as well (credential, workspace, VM sizes, quota, prices), or Slurm (its partition).

python -m ftkit stage=plan compute=h100x2 sft.packing=false
python -m ftkit stage=plan check=true
"""

from __future__ import annotations

from rich.cells import set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ftkit import records
from ftkit.config.schema import Config
from ftkit.config.stages import BY_NAME, PROCESS, Stage
from ftkit.console import INDENT, console, listing, print_unpadded
from ftkit.errors import FtkitError, StageError
from ftkit.pipeline.lineage import context_of, folder_of, origin_of, up_to_date
from ftkit.pipeline.predictions import figures, warnings
from ftkit.pipeline.preflight import refusals
from ftkit.pipeline.stage import Context, Made
from ftkit.platforms.base import job_platform_of
from ftkit.training.artifact import folder_name
from ftkit.translation import said


def run(context: Context) -> Made:
    """Print the plan; the configuration has passed its checks already.

    Raises:
        StageError: a stage would refuse at once, or with check=true Azure lacks something.
    """
    config, out = context.config, console()
    out.print(Text.assemble(("run  ", "dim"), (config.run.name, "bold"), f"   {folder_of(config)}"), soft_wrap=True)
    print_unpadded(out, _stage_table(config))
    for label, text in figures(config):
        _print(out, label, "bold", text)
    warned = list(warnings(config))
    for warning in warned:
        _print(out, "warning", "bold yellow", warning)
    refused = list(refusals(config, config.life_cycle))
    for error in refused:
        _print(out, "refused", "bold red", "; ".join(said(text) for text in (error.what, error.cure) if text))
    if not refused:
        out.print(Text(said("no problems" if not warned else "no errors in the configuration")))
    if config.check:
        _ask_the_platform(context)
    if refused:
        raise StageError(f"{len(refused)} of what the stages need is not there", cure="see the lines above")
    return Made("")


def _print(out: Console, label: str, style: str, text: str) -> None:
    out.print(Text.assemble((set_cell_size(said(label), INDENT), style), said(text)), soft_wrap=True)


VERDICTS = {"ok": Text("ok", style="green"), "wrong": Text("WRONG", style="bold red"), "unknown": Text("?", "yellow")}


def _ask_the_platform(context: Context) -> None:
    """Print what the platform of jobs and endpoints says of all that the stages will need.

    Raises:
        StageError: something is wrong.
    """
    config, out = context.config, console()
    if not config.compute.has_jobs:
        out.print(Text(said("check=true has nothing to ask: compute and deployment are on this machine")))
        return
    findings = job_platform_of(config, context.run_folder).preflight()
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, show_header=False)
    for finding in findings:
        cure = Text(f"{said('cure')}: {said(finding.cure)}" if finding.cure else "", style="dim")
        what, found = (Text(said(text), style) for text, style in ((finding.what, "bold"), (finding.found, "")))
        table.add_row(what, VERDICTS[finding.verdict], found, cure)
    out.print(Text("\n" + said(f"on {config.compute.label}, now")))
    print_unpadded(out, table)
    if wrong := [finding.what for finding in findings if finding.verdict == "wrong"]:
        raise StageError(f"{len(wrong)} of {len(findings)} checks failed: {', '.join(wrong)}", cure="see the table")


def _stage_table(config: Config) -> Table:
    table = listing(*map(said, ("stage", "where", "makes", "now")))
    for name in config.life_cycle:
        stage = BY_NAME[name]
        cells = (_where(stage, config), _makes(stage, config), _status(config, stage))
        table.add_row(Text(name, style="bold"), *map(said, cells))
    return table


def _where(stage: Stage, config: Config) -> str:
    place = stage.place_of(config)
    if place in (PROCESS, "local"):
        several = stage.on_all_ranks and config.processes > 1
        return f"this machine, {config.processes} processes" if several else "this machine"
    if stage.in_job:
        return f"{place}  {config.compute.machines}"
    if stage.starts_server:
        return f"{place}  {config.deployment.instance_count} × {config.deployment.instance_type}"
    return place


def _makes(stage: Stage, config: Config) -> str:
    images = f"images {config.environment.train}, {config.environment.serve}"
    return stage.makes.format(
        environment=images if config.compute.elsewhere else "table of versions",
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
        context = context_of(config, stage, origin_of(config, stage, read=False), lambda _: None)
        current = up_to_date(context, stage, ask_platform=False, read=False)
        return "up to date" if current else "changed: would run again"
    except FtkitError:
        return "changed before it: would run again"
