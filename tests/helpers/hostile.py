"""Files as bad as people and programs make them: sound ones that were damaged, by a seed."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from random import Random

WORDS = [
    "問",
    "答え",
    "，",
    '"',
    "\t",
    "\n",
    "\r\n",
    ",",
    ";",
    "\0",
    "\x1b[31m",
    "é",
    "①",
    "～",
    "🤖",
    "　",
    "{",
    "}",
    "]",
]
ENCODINGS = ["utf-8", "utf-8", "utf-8-sig", "cp932", "euc_jp", "iso2022_jp", "utf-16", "utf-16-le", "cp1252", "gb18030"]
ENDINGS = [".jsonl", ".json", ".csv", ".tsv", ".ndjson", ".parquet", ".xlsx", ".arrow", ".CSV"]


def write_file(folder: Path, seed: int) -> Path:
    """One file of a few rows in some kind, layout and encoding, mostly damaged."""
    random = Random(seed)
    ending = random.choice(ENDINGS)
    rows = [{"question": _text(random), "answer": f"<think>{_text(random)}</think>{_text(random)}"} for _ in range(6)]
    content = _written(rows, ending.lower(), random).encode(random.choice(ENCODINGS), "replace")
    for _ in range(random.choice([0, 0, 1, 3])):
        content = _damaged(content, random)
    packed = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
    compression = random.choice(["", "", "", ".gz", ".xz"])
    content = packed[compression](content)
    if random.random() < 0.15:
        content = content[: random.randrange(len(content) + 1)]
    path = folder / f"rows{ending}{compression}"
    path.write_bytes(content)
    return path


def _text(random: Random) -> str:
    return "日本" + "".join(random.choice(WORDS) for _ in range(random.randrange(6)))


def _written(rows: list[dict[str, str]], ending: str, random: Random) -> str:
    if ending in (".csv", ".tsv"):
        mark = "\t" if ending == ".tsv" else random.choice(",;")
        quote = random.choice([str, lambda text: '"' + text.replace('"', '""') + '"'])
        lines = [["question", "answer"], *([quote(row["question"]), quote(row["answer"])] for row in rows)]
        return "\n".join(mark.join(line) for line in lines)
    layouts = (
        lambda: "\n".join(json.dumps(row, ensure_ascii=random.random() < 0.5) for row in rows),
        lambda: json.dumps(rows, ensure_ascii=False, indent=random.choice([None, 1])),
        lambda: json.dumps({"data": rows}, ensure_ascii=False),
        lambda: "".join(json.dumps(row) for row in rows),
    )
    return random.choice(layouts)()


def _damaged(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return random.choice(
        (
            lambda: content[:at] + bytes(random.randrange(256) for _ in range(3)) + content[at:],
            lambda: content[:at] + content[at + random.randrange(9) :],
            lambda: content.replace(b'"', b"", 1),
            lambda: content.replace(b"\n", b"\r"),
            lambda: content + content[:at],
            lambda: b"[" * at + content,
        )
    )()
