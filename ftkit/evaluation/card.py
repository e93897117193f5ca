"""The card of a merged model: ``README.md`` beside its weights, with the front matter that the hub reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from ftkit.config.schema import Config
from ftkit.evaluation.measures import MEASURES
from ftkit.evaluation.questions import in_words, name_of
from ftkit.files import written_aside
from ftkit.html import rendered
from ftkit.records import Record

CARD, TEMPLATE = "README.md", "card.md.jinja"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(
    folder: Path,
    config: Config,
    *,
    trained: Record,
    data: Record,
    merged: Mapping[str, Any],
    evaluated: Mapping[str, Any] | None = None,
) -> None:
    """Write ``README.md``.

    Args:
        folder: of the merged model.
        config: that it was made with.
        trained: record of ``train``.
        data: record of ``publish``.
        merged: result of ``merge``.
        evaluated: result of ``evaluate``, once it has run.
    """
    text = rendered(
        "evaluation",
        TEMPLATE,
        escape=False,
        front=_front_matter(config, evaluated).to_yaml(),
        config=config,
        trained=trained.result,
        versions=trained.versions,
        hours=trained.result["seconds"] / 3600,
        data=data.result,
        merged=merged,
        evaluated=evaluated,
        asked=in_words(evaluated["questions"], config.evaluation) if evaluated else "",
        measures=MEASURES,
    )
    with written_aside(folder / CARD) as aside:
        aside.write_text(text, encoding="utf-8")


def card_of_part(config: Config, part: Literal["adapter", "data"], model: str) -> str:
    """The card of an adapter, or of the rows, in a repository of its own beside that of the merged ``model``."""
    if part == "data":
        front = DatasetCardData(language=["ja"] if config.dataset.reasoning_language == "Japanese" else None)
        what = f"Rows of {config.dataset.name} that {model} was trained on, as conversations and as tokens"
    else:
        base = _on_hub(config.model.pretrained_model_name_or_path)
        front = ModelCardData(
            base_model=base, library_name="peft", license=config.model.license, tags=["lora", "ftkit"]
        )
        what = f"LoRA adapter of {config.model.name}; {model} is the merged model, and its card tells more"
    return f"---\n{front.to_yaml()}\n---\n\n# {config.run.name}, {part}\n\n{what}. Made by ftkit.\n"


def _front_matter(config: Config, evaluated: Mapping[str, Any] | None) -> ModelCardData:
    base = _on_hub(config.model.pretrained_model_name_or_path)
    return ModelCardData(
        model_name=config.run.name,
        license=config.model.license,
        base_model=base,
        base_model_relation="finetune" if base else None,
        datasets=_datasets(config) or None,
        language=["ja"] if config.dataset.reasoning_language == "Japanese" else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[config.model.architecture.model_type, "reasoning", *(["lora"] if config.lora else []), "ftkit"],
        eval_results=_eval_results(config, evaluated) if evaluated else None,
        ignore_metadata_errors=False,
    )


def _eval_results(config: Config, evaluated: Mapping[str, Any]) -> list[EvalResult]:
    found = [_eval_result(config, name, evaluated) for name in MEASURES]
    for figure in evaluated.get("lm_eval", {}).get("figures", ()):
        if not figure["part_of"]:
            found.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type="custom",
                    dataset_name=f"{figure['task']} of lm-eval",
                    metric_type=figure["metric"],
                    metric_value=round(figure["merged"], 4),
                    metric_name=f"{figure['task']}, {figure['metric']}",
                )
            )
    return found


def _eval_result(config: Config, name: str, evaluated: Mapping[str, Any]) -> EvalResult:
    task, sources = config.evaluation, _datasets(config)
    return EvalResult(
        task_type="text-generation",
        dataset_type=sources[0] if len(sources) == 1 and task.path is None else "custom",
        dataset_name=f"held-out rows of {config.dataset.name}" if task.path is None else name_of(task),
        metric_type=name,
        metric_value=round(evaluated["merged"][name], 4),
        metric_name=MEASURES[name],
    )


def _datasets(config: Config) -> list[str]:
    """Hub ids of the rows' sources."""
    return [found for source in config.dataset.sources.values() if (found := _on_hub(source.place))]


def _on_hub(path: str) -> str | None:
    """A hub id as it is; None for a folder, a file, or what ships with ftkit or lies in Azure ML."""
    return path if HUB_ID.fullmatch(path) and not Path(path).exists() else None
