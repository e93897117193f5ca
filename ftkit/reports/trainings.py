"""The report on several trainings: one self-contained HTML page, and the loss curves as a PNG beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftkit.files import written_aside
from ftkit.html import write_page
from ftkit.reports.runs import Training, best, differing, judged_by
from ftkit.training.losses import source_of

PAGE, PICTURE, TEMPLATE = "report.html", "loss.png", "trainings.html.jinja"
SHOWN_POINTS = 600
"""Of a longer curve, so many points go into the page."""
COLOURS = (
    *("#3b7dd8", "#e07b39", "#1f9d8f", "#d1495b", "#8a63d2", "#b58900"),
    *("#c45aa0", "#5c9e31", "#2f9fc9", "#8c6d5a"),
)
"""One for each training, in the picture and on the page; from the eleventh on they come again, dashed."""
PARTS = {"heldout": "eval_loss", "thinking": "eval_thinking_loss", "answers": "eval_answer_loss"}
"""Curves of the held-out rows, by the names that the page has for them."""
GO_ON = ("merge", "register", "deploy")
SFT = "cross entropy in nats for each token that carries loss"


def write_report(found: Sequence[Training], folder: Path, outputs: Path) -> list[Path]:
    """Write ``report.html`` and ``loss.png`` (the latter only where matplotlib is installed).

    Args:
        found: trainings, the best first.
        folder: for both files.
        outputs: where the runs lie, for the page's heading.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    if any(training.steps for training in found) and _draw(found, folder / PICTURE):
        files.append(folder / PICTURE)
    picture, winner = files[0] if files else None, best(found)
    write_page(
        folder / PAGE,
        "reports",
        TEMPLATE,
        home="../index.html",
        outputs=str(outputs),
        found=found,
        finished=[t for t in found if t.status == "finished"],
        winner=winner,
        by={"eval_loss": "held-out loss", "last_loss": "loss of the last step"}[judged_by(found)],
        keys=differing(found),
        colours=[colour(i) for i in range(len(found))],
        hours=sum(t.hours or 0 for t in found),
        tokens=sum(t.figure("tokens") or 0 for t in found),
        commands=winner and {"train": winner.command(["train"]), "go_on": winner.command(GO_ON)},
        curves=[_curve(t, i) for i, t in enumerate(found) if t.steps],
        losses=losses_in_words(found),
        picture=picture and base64.b64encode(picture.read_bytes()).decode(),
    )
    return [folder / PAGE, *files]


def losses_in_words(found: Sequence[Training]) -> dict[str, str]:
    """By method, what the loss is that trainings of it report."""
    return {method: _loss_in_words(method, found) for method in sorted({training.method for training in found})}


def _loss_in_words(method: str, found: Sequence[Training]) -> str:
    if method == "sft":
        return SFT
    kinds = [training.settings.get("method.loss_type") for training in found if training.method == method]
    kinds = dict.fromkeys(" + ".join(kind) if isinstance(kind, list) else str(kind) for kind in kinds)
    of = {"dpo": "the mean over pairs", "grpo": "which says little without the rewards"}.get(method, "")
    return f"as TRL defines it for loss_type={', '.join(kinds)}, {of}"


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _curve(training: Training, number: int) -> dict[str, Any]:
    """What the page draws: points of [step, tokens, hours, loss], and of the held-out losses as well."""
    steps = training.steps
    kept = steps[:: -(-len(steps) // SHOWN_POINTS)]
    kept = kept if kept[-1] is steps[-1] else [*kept, steps[-1]]
    sources = dict.fromkeys(name for line in training.evaluations for name in line if source_of(name))
    at = {line["step"]: [line["step"], line["tokens"], round(line["seconds"] / 3600, 6)] for line in steps}
    return {
        "row": number,
        "name": training.name,
        "colour": colour(number),
        "dashed": number >= len(COLOURS),
        "training": [[*at[line["step"]], round(line["loss"], 5)] for line in kept],
        **{
            part: [[*at[line["step"]], round(line[name], 5)] for line in training.evaluations
                   if name in line and line["step"] in at]
            for part, name in (PARTS | {f"source {source_of(name)}": name for name in sources}).items()
        },
        "sources": [source_of(name) for name in sources],
    }  # fmt: skip


def _draw(found: Sequence[Training], path: Path) -> bool:
    """Training and held-out loss over the steps; False where there are none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    held_out = any(training.evaluations for training in found)
    for number, training in enumerate(found):
        if not training.steps:
            continue
        style: dict[str, Any] = {"color": colour(number), "linestyle": "--" if number >= len(COLOURS) else "-"}
        x, y = zip(*((line["step"], line["loss"]) for line in training.steps), strict=True)
        label = "" if training.evaluations else training.name
        axes.plot(x, y, linewidth=1, alpha=0.45 if held_out else 1, label=label, **style)
        if training.evaluations:
            points = ((line["step"], line["eval_loss"]) for line in training.evaluations)
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=training.name, **style)
    title = "loss on the held-out rows (dots), training loss (faint)" if held_out else "training loss"
    of_tokens = all(training.method == "sft" for training in found)
    axes.set(xlabel="optimiser step", ylabel="nats per loss token" if of_tokens else "loss")
    if of_tokens:
        axes.set_ylim(0, None)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    with written_aside(path) as aside:
        figure.savefig(aside, format="png")
    return True
