"""stage=generate: have a model answer questions whose answer is known, several times each; right answers become rows.

python -m ftkit experiment=tiny stage=generate
python -m ftkit experiment=tiny stage=generate generate.source=base generate.hint=日本語で考えてください。
python -m ftkit experiment=tiny stage=generate generate=rewrite generate.source=base
python -m ftkit experiment=tiny stage=generate generate=teacher generate.url=http://127.0.0.1:8000/v1 generate.model=…
python -m ftkit experiment=tiny stage=all,evaluate run.name=tiny-2 dataset.path=outputs/tiny/generate/rows
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from ftkit import records
from ftkit.config.data_files import find_files
from ftkit.config.generation import SOURCES
from ftkit.config.schema import Config, Model
from ftkit.errors import StageError
from ftkit.evaluation.candidates import Candidate
from ftkit.evaluation.measures import Answer
from ftkit.files import joined_digest, sha256
from ftkit.generation.outcome import PAGE, ROWS, Outcome
from ftkit.generation.questions import check_writable, questions_of
from ftkit.generation.rewriting import rewritten
from ftkit.generation.sifting import sift
from ftkit.generation.sources import Local, Source, Writing
from ftkit.generation.teacher import Teacher
from ftkit.library_logs import libraries_to
from ftkit.pipeline.stage import Context, Found, Made

LIBRARY_LOG = "library.log"


def outside_inputs(config: Config) -> dict[str, str]:
    """Digests of a file of other questions, and of another run's merged model."""
    settings, found = config.generate, {}
    if settings.path and (files := find_files(settings.path)):
        found["questions"] = joined_digest({str(path): sha256(path) for path in files.on_disk() if path.is_file()})
    if settings.source not in SOURCES:
        found["model"] = _merged_of(config).record.result["digest"]
    return found


def run(context: Context) -> Made:
    """Write answers, sift them, leave rows, pairs and the page.

    Raises:
        StageError: there is no question to ask, the model is not here, the server does not answer, or nothing is kept.
    """
    config, settings = context.config, context.config.generate
    context.folder.mkdir(parents=True, exist_ok=True)
    prepared = context.needs["prepare"]
    with libraries_to(context.folder / LIBRARY_LOG):
        outcome = _outcome(context, prepared.folder / f"{config.dataset.asset_name}.parquet")
    if not outcome.kept:
        raise StageError(
            f"none of {len(outcome.sifted.answers):,} answers is kept: {outcome.dropped_in_words}",
            where=str(context.folder),
            cure="generate.samples=<more>, generate=rewrite if the language alone is wrong, or another generate.source",
        )
    files = outcome.write(context.folder)
    if outcome.dropped:
        context.say(f"not kept: {outcome.dropped_in_words}")
    context.say(f"to train on them: run.name=<another> dataset.path={context.folder / ROWS}")
    times = f"{settings.samples} answers each" if settings.samples > 1 else "an answer each"
    summary = (
        f"{len(outcome.questions.items):,} questions, {times} by {outcome.source.shown}: {outcome.kept:,} kept of "
        f"{outcome.answered:,} questions; {context.folder / PAGE}"
    )
    return Made(summary, files, outcome.result())


def _outcome(context: Context, prepared: Path) -> Outcome:
    config, settings = context.config, context.config.generate
    found = questions_of(prepared, config.dataset, settings.path, settings.questions)
    tokens_of = _counter(config)
    source = _source(context, tokens_of)
    if isinstance(source, Local):
        check_writable(found, source.renderer)
    if found.left_out:
        context.say(f"not asked: {found.left_out_in_words}")
    writing = Writing("answers", source, settings, context.folder, context.say, afresh=config.force)
    conversations = [item.asked(settings.hint) for item in found.items]
    answers = writing.answers(conversations, [range(settings.samples)] * len(conversations))
    sifted, before = sift(answers, settings, config.dataset.thinking_tag), {}
    if settings.rewrite:
        again = Writing("rewritten", source, settings, context.folder, context.say, afresh=config.force)
        anew = rewritten(sifted, found.items, again, tokens_of)
        before = {place: answers[place].thinking for place in anew}
        sifted = sift(_replaced(answers, anew), settings, config.dataset.thinking_tag)
    return Outcome(config, source, found, sifted, before)


def _replaced(answers: Sequence[Answer], anew: dict[int, Answer]) -> list[Answer]:
    return [anew.get(place, answer) for place, answer in enumerate(answers)]


def _counter(config: Config) -> Callable[[str], int]:
    from ftkit.models.loading import load_tokenizer

    tokenizer = load_tokenizer(config.model)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _source(context: Context, tokens_of: Callable[[str], int]) -> Source:
    config = context.config
    chosen = config.generate.source
    if chosen == "url":
        return Teacher(config, tokens_of, context.say)
    if chosen == "base":
        model, digest = config.model, config.model.model_dump_json(exclude={"folder", "tokenizer", "license"})
        name = model.pretrained_model_name_or_path
        return Local(f"the base, {name}", name, digest, Candidate("base", model, digest), config)
    merged = context.needs["merge"] if chosen == "merged" else _merged_of(config)
    return _merged(config, merged, config.model if chosen == "merged" else _model_of(merged.run_folder))


def _merged(config: Config, merged: Found, model: Model) -> Local:
    folder, digest = merged.run_folder / merged.record.result["folder"], merged.record.result["digest"]
    if not folder.is_dir():
        cure = "fetch it, or serve it and give its address: generate.source=url generate.url=…"
        raise StageError("the merged model was made by a job and is not here", where=str(folder), cure=cure)
    model = model.model_copy(
        update={"pretrained_model_name_or_path": str(folder), "revision": None, "folder": None, "tokenizer": None}
    )
    name = merged.run_folder.name
    return Local(f"the merged model of {name}", name, digest, Candidate("merged", model, digest), config)


def _merged_of(config: Config) -> Found:
    """Another run's merged model.

    Raises:
        StageError: it has none, or its files are gone or changed.
    """
    folder = Path(config.run.outputs) / config.generate.source
    record = records.read(folder, "merge")
    cure = f"run.name={config.generate.source} stage=merge"
    if record is None:
        raise StageError(f"{config.generate.source} has no merged model", where=str(folder), cure=cure)
    if gone := record.changed_files(folder):
        raise StageError(f"merge made {gone[0]}, which is gone or changed", where=str(folder), cure=cure)
    return Found(record, folder)


def _model_of(run_folder: Path) -> Model:
    """How another run loads its model.

    Raises:
        StageError: its configuration cannot be read.
    """
    path = run_folder / "config.yaml"
    try:
        return Model.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        cure = f"run.name={run_folder.name} stage=merge force=true"
        what = "the run's configuration does not say how its model is loaded"
        raise StageError(what, where=str(path), cure=cure) from error
