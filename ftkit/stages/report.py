"""stage=report: gather the trainings of any runs, sweeps and jobs included, into one HTML page.

python -m ftkit experiment=tiny stage=report
python -m ftkit experiment=tiny stage=report report.runs=[tiny,tiny-lora.r=4]
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ftkit.pipeline.stage import Context, Made
from ftkit.reports.runs import best, data_differ, judged_by, trainings
from ftkit.reports.trainings import write_report

FOLDER = "_report"


def run(context: Context) -> Made:
    """Write ``<run.outputs>/_report/report.html`` and ``loss.png``.

    Raises:
        StageError: a run that is asked for is not there, or none has been trained.
    """
    outputs = Path(context.config.run.outputs)
    found = trainings(outputs, context.config.report.runs)
    page, *_ = write_report(found, outputs / FOLDER, outputs)
    counts = Counter(training.status for training in found)
    summary = ", ".join(
        f"{counts[status]} {status}" for status in ("finished", "failed", "unfinished") if counts[status]
    )
    if winner := best(found):
        figure = judged_by(found)
        name = {"eval_loss": "held-out loss", "last_loss": "loss"}[figure]
        if data_differ(found):
            context.say("the runs had different rows: their losses do not say which of them is better")
        summary += f"; lowest {name} {winner.result[figure]:.4f}: {winner.name}"
    return Made(f"{summary}; {page}")
