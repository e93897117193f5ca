"""stage=prepare: rows to Harmony conversations and to tokens; every row is kept, refused with a reason, or left out.

python -m ftkit experiment=tiny stage=prepare
python -m ftkit stage=prepare dataset=jsonl dataset.path=rows.jsonl
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.config.checkpoint import can_be_read
from ftkit.config.data_files import find_files, find_validation
from ftkit.config.dataset import Dataset
from ftkit.config.groups import Model
from ftkit.config.schema import Config
from ftkit.console import counting
from ftkit.errors import StageError
from ftkit.families import family_of
from ftkit.files import scratch, sha256
from ftkit.pipeline.stage import Context, Made

if TYPE_CHECKING:
    import numpy as np

    from ftkit.data.parts import Part
    from ftkit.data.statistics import Statistics

TOKENS = "tokens.parquet"
REJECTED = "rejected.jsonl"
REPORT = "report.html"
CHARTS = "report.png"
SHOWN_REASONS = 3
SHOWN_LEFT_OUT = 5


def outside_inputs(config: Config) -> dict[str, str]:
    """Digests of the rows' files and of a local tokenizer; what lies on the hub is known by name and revision alone."""
    from ftkit.assets import asset_path

    rows = _digest(path for source in config.dataset.sources.values() for path in _files(source))
    model = Path(asset_path(config.model.tokenizer or config.model.pretrained_model_name_or_path))
    tokenizer = _digest(p for p in sorted(model.glob("*")) if p.name.startswith(("tokenizer", "chat_template")))
    return {name: digest for name, digest in (("rows", rows), ("tokenizer", tokenizer)) if digest}


def _files(source: Dataset) -> Iterator[Path]:
    """Every file that is opened for a source."""
    found = find_files(source.place, source.split)
    for files in (found, find_validation(source.validation, on_hub=found is None)):
        yield from files.on_disk() if files else ()


def _digest(paths: Iterable[Path]) -> str:
    """One digest of some files: of one file its own."""
    digests = [f"{sha256(path)} {path.name}" for path in paths if path.is_file()]
    if len(digests) < 2:
        return "".join(digests)[:64]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def run(context: Context) -> Made:
    """Convert, tokenise, split, write, report.

    Raises:
        StageError: the source cannot be read, or no row of it can be used.
    """
    import numpy as np

    from ftkit.chat.format import renderer_of
    from ftkit.data.assemble import assemble
    from ftkit.data.mixture import HELD_OUT, SURPLUS, TRAIN, heldout_shares, of_conversations, read_sources, taken
    from ftkit.data.parts import Work, prepare
    from ftkit.data.report import write_report
    from ftkit.data.splits import sides
    from ftkit.data.statistics import Statistics
    from ftkit.models.loading import load_tokenizer

    dataset, folder, name = context.config.dataset, context.folder, context.config.dataset.asset_name
    tokenizer = load_tokenizer(context.config.model)
    family = family_of(context.config.model.architecture.model_type)
    renderer = renderer_of(tokenizer, current_date=dataset.current_date, must_be=family.chat)
    left_out: list[str] = []
    with scratch(folder / "parts") as parts_folder:
        parts_folder.mkdir()
        work = Work(dataset, renderer, parts_folder)
        parts = []
        with counting("rows read", context.say) as count:
            for part in prepare(read_sources(dataset, left_out.append), work, dataset.num_proc):
                _check_vocabulary(part, context.config.model)
                parts.append(part)
                count(len(part.rows) + part.refused.total())
        for source, settings in dataset.sources.items():
            _check_source([part for part in parts if part.source == source], source, settings)
        takes = taken(parts, dataset)
        split = sides(
            [keys.of(some) for keys, some in zip((p.keys for p in parts), _by_part(takes, parts), strict=True)],
            heldout=heldout_shares(parts, dataset)[takes],
            likeness=dataset.near_duplicates,
            validation=of_conversations(parts)[1][takes],
        )
        places = np.full(len(takes), SURPLUS, np.int8)
        places[takes] = np.where(split.heldout, HELD_OUT, TRAIN)
        files = [folder / file for file in (f"{name}.parquet", f"{name}.jsonl", TOKENS, REJECTED)]
        assemble(parts, places, renderer.within_characters, files)
    statistics = Statistics.of(parts, split, places, dataset, left_out)
    for line in (*_refused(statistics, folder), *_source_remarks(statistics, folder), *statistics.remarks(dataset)):
        context.say(line)
    files += write_report(folder / REPORT, folder / CHARTS, statistics, context.config, tokenizer, folder / TOKENS)
    return Made(statistics.summary(), files, statistics.figures())


def _check_vocabulary(part: Part, model: Model) -> None:
    """See that the model has every token that its tokenizer writes.

    Raises:
        StageError: it has not; training would find out later.
    """
    token, row = part.largest
    if token >= model.architecture.vocab_size and can_be_read(model):
        raise StageError(
            f"row {row} holds token {token}, and the model has {model.architecture.vocab_size}: "
            "the tokenizer is not the model's",
            where=model.tokenizer or model.pretrained_model_name_or_path,
            cure="model.tokenizer=<the tokenizer of this model>",
        )


def _by_part(whole: np.ndarray, parts: Sequence[Part]) -> list[np.ndarray]:
    """An array of all conversations, cut into those of each part."""
    import numpy as np

    return np.split(whole, np.cumsum([len(part.rows) for part in parts])[:-1])


def _refused(statistics: Statistics, folder: Path) -> Iterator[str]:
    """How many rows of which source were refused for which reason, and what each source has left."""
    from ftkit.data.mixture import of_source
    from ftkit.data.readers import cure_of

    counts = {name: source.refused for name, source in statistics.sources.items()} or {"": statistics.refused}
    for name, refused in counts.items():
        of = f"{name}: " if name else ""
        if name:
            yield of + statistics.sources[name].summary()
        for reason, count in refused.most_common(SHOWN_REASONS):
            cure = of_source(statistics.cures.get(reason) or cure_of(reason), name)
            yield f"{of}refused {count:,}: {reason}" + (f" ({cure})" if cure else "")
    if statistics.refused:
        others = sum(max(0, len(refused) - SHOWN_REASONS) for refused in counts.values())
        why = f"; {others} more {'reason' if others == 1 else 'reasons'} there" if others else ""
        yield f"each refused row is in {folder / REJECTED}{why}"


def _source_remarks(statistics: Statistics, folder: Path) -> Iterator[str]:
    """What was left out of the source, and what the user's own held-out rows are."""
    if names := statistics.left_out:
        more = f"; and {len(names) - SHOWN_LEFT_OUT} more, in {folder / REPORT}" if len(names) > SHOWN_LEFT_OUT else ""
        yield f"left out: {'; '.join(names[:SHOWN_LEFT_OUT])}{more}"
    if statistics.validation:
        yield f"held out: {statistics.validation:,} rows of your own; dataset.heldout takes no others"
    if statistics.like_validation:
        yield f"held out too: {statistics.like_validation:,} rows whose questions are like one of these"


def _check_source(parts: Sequence[Part], name: str, settings: Dataset) -> None:
    """See that the rows of a source have what its settings name, and that some can be used.

    Raises:
        StageError: they have not, or none can.
    """
    from ftkit.data.columns import check_columns
    from ftkit.data.mixture import of_source
    from ftkit.data.refused import Account

    seen = Account()
    for part in parts:
        seen.add(part.account)
    try:
        check_columns(seen, settings)
        if not any(len(part.rows) for part in parts):
            raise _nothing_usable(parts, settings.place)
    except StageError as error:
        where = of_source(f"{name}: {error.where}" if name else error.where or "", name)
        raise StageError(error.what, where=where, cure=of_source(error.cure, name)) from error


def _nothing_usable(parts: Sequence[Part], path: str) -> StageError:
    from ftkit.data.readers import cure_of

    refused = [line for part in parts for line in part.rejected.read_text(encoding="utf-8").split("\n")[:-1][:1]]
    count = sum(sum(part.refused.values()) for part in parts)
    first = json.loads(refused[0]) if refused else {"reason": "there is no row", "where": ""}
    general = next((reason for part in parts for reason in part.refused), "")
    cure = next((part.cures[general] for part in parts if general in part.cures), "") or cure_of(general)
    what = f"none of the {count:,} rows can be used; the first was refused because {first['reason']}"
    return StageError(
        what if count else "there is no row",
        where=", ".join(filter(None, (path, first["where"]))),
        cure=cure or "mend the rows, or give others: dataset.path=<your rows>",
    )
