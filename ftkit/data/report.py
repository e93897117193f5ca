"""The data report: one self-contained HTML page, and its charts as a PNG."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ftkit.chat.harmony_render import IGNORED
from ftkit.config.schema import Config
from ftkit.data.languages import NAMES
from ftkit.data.statistics import Statistics
from ftkit.files import written_aside
from ftkit.html import HOME, percent, write_page

PAGE = "report.html.jinja"
SHOWN_ROWS = 10
SHOWN_TOKENS = 400
"""Of a longer row, the first and the last half of so many are shown."""
SHOWN_REASONS = 40
BARS = 48

PROMPT, THINKING, ANSWER, CUT = "#b9c0ca", "#3b7dd8", "#1f9d8f", "#d1495b"
COLOURS = {"prompt": PROMPT, "thinking": THINKING, "answer": ANSWER}
"""One colour for each part of a row, on the page and in the picture."""


@dataclass(frozen=True)
class Token:
    """A piece of a row in the viewer.

    Attributes:
        text: one token, or several that make one character together; line ends are shown as ↵ before them.
        ids: their numbers.
        loss: whether they carry loss.
        special: it is a special token.
    """

    text: str
    ids: str
    loss: bool
    special: bool


@dataclass(frozen=True)
class ShownRow:
    """A row in the viewer; ``hidden`` tokens are left out between ``head`` and ``tail``."""

    number: int
    split: str
    tokens: int
    loss: int
    head: list[Token]
    hidden: int
    tail: list[Token]

    @property
    def text(self) -> str:
        """What is shown."""
        return "".join(token.text for token in (*self.head, *self.tail))


@dataclass(frozen=True)
class Histogram:
    """Lengths of the training rows.

    Attributes:
        counts: rows in each bar; the last one takes all that are longer.
        edges: tokens, one more than bars.
        ticks: round numbers of tokens among them, for the axis.
        beyond: rows longer than the last edge.
    """

    counts: list[int]
    edges: list[float]
    ticks: list[int]
    beyond: int


def write_report(
    page: Path, charts: Path, statistics: Statistics, config: Config, tokenizer: Any, tokens: Path
) -> list[Path]:
    """Write both files.

    Args:
        tokenizer: of transformers, to show tokens as text.
        tokens: the parquet file of token rows, of which ten are shown.
    """
    histogram = histogram_of(statistics, config.sft.max_length)
    packed, fill = statistics.packing(config.sft.max_length)
    write_page(
        page,
        "data",
        PAGE,
        home=HOME,
        name=config.run.name,
        dataset=config.dataset,
        max_length=config.sft.max_length,
        packing=config.sft.packing,
        statistics=statistics,
        reasons=_reasons(statistics).most_common(SHOWN_REASONS),
        remarks=list(statistics.remarks(config.dataset)),
        histogram=histogram,
        quantiles=quantiles(statistics),
        languages=language_shares(statistics),
        packed=packed,
        fill=fill,
        colours=COLOURS | {"cut": CUT},
        rows=shown_rows(tokens, tokenizer),
    )
    with written_aside(charts) as aside:
        draw(aside, statistics, histogram, config)
    return [page, charts]


def _reasons(statistics: Statistics) -> Counter[str]:
    """How many rows were refused for which reason; of several sources each with its own."""
    named = {
        f"{name}: {reason}": count
        for name, source in statistics.sources.items()
        for reason, count in source.refused.items()
    }
    return Counter(named) or statistics.refused


def quantiles(statistics: Statistics) -> dict[str, int]:
    """Tokens of the shortest, the middle, the 95th of a hundred and the longest training row."""
    lengths = statistics.lengths[statistics.trained, 0]
    if not len(lengths):
        return {}
    named = {"shortest": 0, "median": 50, "95 % at most": 95, "longest": 100}
    return {name: int(np.percentile(lengths, q, method="higher")) for name, q in named.items()}


def language_shares(statistics: Statistics) -> dict[str, list[tuple[str, float]]]:
    """For thinking and answers the share of each language that occurs, in a fixed order."""
    shares = {}
    for kind, counts in statistics.languages.items():
        total = counts.total()
        shares[kind] = [(name, counts[name] / total) for name in NAMES if counts[name]]
    return shares


def histogram_of(statistics: Statistics, max_length: int) -> Histogram:
    """Bars from the shortest row to the longest, or to one and a half times ``max_length`` if that is less."""
    from matplotlib.ticker import MaxNLocator

    lengths = statistics.lengths[statistics.trained, 0]
    if not len(lengths):
        lengths = statistics.lengths[:, 0]
    start = int(lengths.min())
    end = max(start + 1, min(int(lengths.max()), int(1.5 * max_length)))
    counts, edges = np.histogram(np.clip(lengths, start, end), bins=min(BARS, end - start), range=(start, end))
    ticks = [int(tick) for tick in MaxNLocator(8, integer=True).tick_values(start, end) if start <= tick <= end]
    return Histogram(counts.tolist(), edges.tolist(), ticks, int((lengths > end).sum()))


def shown_rows(tokens: Path, tokenizer: Any) -> list[ShownRow]:
    """Ten rows, evenly spread over the file."""
    file = pq.ParquetFile(tokens)
    total = file.metadata.num_rows
    wanted = sorted({round(i) for i in np.linspace(0, total - 1, min(SHOWN_ROWS, total))})
    shown, start = [], 0
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        inside = [index - start for index in wanted if start <= index < end]
        if inside:
            rows = file.read_row_group(group, ["row", "split", "input_ids", "labels"]).take(inside).to_pylist()
            shown += [_shown(row, tokenizer) for row in rows]
        start = end
    return shown


def _shown(row: dict[str, Any], tokenizer: Any) -> ShownRow:
    ids, loss = row["input_ids"], [label != IGNORED for label in row["labels"]]
    pairs = list(zip(ids, loss, strict=True))
    half = SHOWN_TOKENS // 2
    cut = len(pairs) > SHOWN_TOKENS
    head, tail = (pairs[:half], pairs[-half:]) if cut else (pairs, [])
    return ShownRow(
        row["row"],
        row["split"],
        len(ids),
        sum(loss),
        list(_pieces(head, tokenizer)),
        len(pairs) - SHOWN_TOKENS if cut else 0,
        list(_pieces(tail, tokenizer)),
    )


def _pieces(pairs: Sequence[tuple[int, bool]], tokenizer: Any) -> Iterator[Token]:
    """Tokens as text; those that are only parts of a character are joined, unless it never becomes whole."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    waiting: list[int] = []
    for i, (token, loss) in enumerate(pairs):
        waiting.append(token)
        text = tokenizer.decode(waiting, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        last = i + 1 == len(pairs) or pairs[i + 1][1] != loss or pairs[i + 1][0] in special
        if "\ufffd" in text and len(waiting) < 4 and not last:
            continue
        yield Token(text.replace("\n", "↵\n"), " ".join(map(str, waiting)), loss, token in special)
        waiting = []


def draw(path: Path, statistics: Statistics, histogram: Histogram, config: Config) -> None:
    """Draw lengths, parts and languages as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    lengths, parts, languages = figure.subplot_mosaic("aa;bc", height_ratios=[3, 2]).values()
    figure.suptitle(f"{config.run.name}: {statistics.summary()}", fontsize=10.5, x=0.01, ha="left")
    _draw_lengths(lengths, histogram, config.sft.max_length, statistics.longer_than(config.sft.max_length))
    _draw_parts(parts, statistics)
    _draw_languages(languages, language_shares(statistics))
    for axes in (lengths, parts, languages):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def _draw_lengths(axes: Any, histogram: Histogram, max_length: int, longer: int) -> None:
    edges = histogram.edges
    axes.bar(edges[:-1], histogram.counts, np.diff(edges) * 0.92, align="edge", color=THINKING)
    axes.set_title("Length of the training rows", loc="left", fontsize=10, fontweight="bold")
    axes.set(xlabel="tokens", ylabel="rows", xlim=(edges[0], edges[-1]), xticks=histogram.ticks)
    axes.yaxis.get_major_locator().set_params(integer=True)
    if edges[0] <= max_length <= edges[-1]:
        axes.axvline(max_length, color=CUT, linewidth=1.5)
        label = f" sft.max_length={max_length:,}: {longer:,} longer "
        side = "right" if max_length > (edges[0] + edges[-1]) / 2 else "left"
        axes.text(max_length, 0.94, label, color=CUT, ha=side, transform=axes.get_xaxis_transform())


def _draw_parts(axes: Any, statistics: Statistics) -> None:
    axes.set_title("Training tokens by part", loc="left", fontsize=10, fontweight="bold")
    tokens = statistics.tokens
    total = max(1, sum(tokens.values()))
    labels = {"prompt": "prompt, no loss", "thinking": "thinking", "answer": "answer and marks"}
    for i, (kind, count) in enumerate(tokens.items()):
        axes.barh(i, count / total, color=COLOURS[kind], height=0.62)
        axes.text(count / total + 0.015, i, f"{percent(count / total)}  ({count:,})", va="center", fontsize=9)
    axes.set(yticks=range(3), yticklabels=labels.values(), xlim=(0, 1.3), xticks=[])
    axes.invert_yaxis()
    axes.spines["bottom"].set_visible(False)


def _draw_languages(axes: Any, shares: dict[str, list[tuple[str, float]]]) -> None:
    axes.set_title("Language", loc="left", fontsize=10, fontweight="bold")
    names = [name for name in NAMES if any(name == found for kind in shares.values() for found, _ in kind)]
    for offset, kind in ((-0.2, "thinking"), (0.2, "answer")):
        share = dict(shares[kind])
        places = np.arange(len(names)) + offset
        axes.barh(places, [share.get(name, 0) for name in names], 0.36, color=COLOURS[kind], label=kind)
        for place, name in zip(places, names, strict=True):
            axes.text(share.get(name, 0) + 0.015, place, percent(share.get(name, 0)), va="center", fontsize=8)
    axes.set(
        yticks=range(len(names)), yticklabels=names, xlim=(0, 1.25), xticks=[], ylim=(max(2, len(names)) - 0.4, -0.5)
    )
    axes.spines["bottom"].set_visible(False)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=9)
