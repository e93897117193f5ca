"""GGUF for llama.cpp: the merged model goes through the user's copy of its converter (``merge.gguf``), and is checked.

python -m ftkit compute=local deployment=local stage=merge merge.format=mxfp4 merge.gguf=../llama.cpp
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ftkit.config.checks.llama_cpp import find_converter
from ftkit.config.schema import Config
from ftkit.errors import Interrupted, StageError
from ftkit.export.gguf_header import differences, missing, read_header
from ftkit.families import family_of
from ftkit.files import explained, sha256, written_aside
from ftkit.library_logs import libraries_to
from ftkit.models.loading import save_without_weights
from ftkit.processes import passing_on_sigterm

FILE = "merged.gguf"
LOG = "gguf.log"

OUTTYPES = {"fp32": "f32", "bf16": "bf16", "mxfp4": "bf16"}
"""What the converter is asked for: nothing is rounded. Experts that are in MXFP4 stay so."""

TYPES = {"fp32": {"F32"}, "bf16": {"F32", "BF16"}, "mxfp4": {"F32", "BF16", "MXFP4"}}
"""What the file's tensors may be, for each ``merge.format``: norms, biases and routers are written in float32."""

PROGRESS_S = 30
"""Seconds between two lines that say how far the converter is."""

LEFT = "merged/ has passed and stays; the same command tries the conversion alone again"


def rehearse(config: Config, folder: Path) -> None:
    """Have the converter write the vocabulary and the settings alone, before any weight is loaded.

    It takes seconds, and shows whether it runs, knows the family, its vocabulary and the options that it will be given.

    Args:
        folder: takes the converter's output, ``gguf.log``.

    Raises:
        StageError: it does not; with the converter's last lines.
    """
    with tempfile.TemporaryDirectory() as scratch, libraries_to(None):
        model, out = Path(scratch) / "model", Path(scratch) / "vocabulary.gguf"
        save_without_weights(config.model, model)
        _run(config, model, out, folder / LOG, options=["--vocab-only"])
        _check(config, model, out, folder / LOG)


def convert(
    config: Config, merged: Path, out: Path, *, parameters: int, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Convert the merged model, and see that all of it is there, unrounded.

    Args:
        merged: its folder.
        out: the GGUF file; it is there only when the conversion has ended well.
        parameters: of the model.
        folder: takes the converter's output, ``gguf.log``.
        say: prints a line.

    Returns:
        For the record: file, bytes and sha256.

    Raises:
        StageError: the converter failed, with its last lines; or its file is not the model.
        Interrupted: SIGTERM.
    """
    out.unlink(missing_ok=True)
    log = folder / LOG
    say(f"converting to GGUF with {find_converter(str(config.merge.gguf))}; its output is in {log}")
    with written_aside(out) as aside:

        def progress() -> None:
            written = aside.stat().st_size if aside.exists() else 0
            say(f"GGUF: {written / 2**30:.1f} GiB written")

        _run(config, merged, aside, log, after=LEFT, progress=progress)
        _check(config, merged, aside, log, parameters=parameters, after=LEFT)
        made = {"file": out.name, "bytes": aside.stat().st_size, "sha256": sha256(aside)}
    return made


def _command(config: Config) -> list[str]:
    """Interpreter and script: the ``.venv`` beside the script if there is one, else our own; or a program."""
    converter = find_converter(str(config.merge.gguf))
    if converter.suffix != ".py":
        return [str(converter)]
    own = converter.parent / ".venv" / "bin" / "python"
    return [str(own if own.is_file() else sys.executable), str(converter)]


def _run(
    config: Config,
    model: Path,
    out: Path,
    log: Path,
    *,
    options: Sequence[str] = (),
    after: str = "",
    progress: Callable[[], None] = lambda: None,
) -> None:
    command = [*_command(config), str(model), "--outfile", str(out), "--outtype", OUTTYPES[config.merge.format]]
    command += ["--model-name", config.registration.model_name, *options]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT)
        except OSError as error:
            raise StageError(f"the converter cannot be run: {error.strerror}", where=command[0]) from error
        with passing_on_sigterm(process):
            status = _wait(process, progress)
    if status == -signal.SIGTERM:
        interrupted = Interrupted("interrupted in merge; the same command takes it up again")
        interrupted.exit_status = 128 + signal.SIGTERM
        raise interrupted
    if status != 0 or not out.is_file():
        raise _failed(config, status, out, log, after)


def _wait(process: subprocess.Popen[bytes], progress: Callable[[], None]) -> int:
    try:
        while True:
            try:
                return process.wait(PROGRESS_S)
            except subprocess.TimeoutExpired:
                progress()
    except BaseException:
        process.kill()
        process.wait()
        raise


def _failed(config: Config, status: int, out: Path, log: Path, after: str) -> StageError:
    """The converter's last lines, and what mends what they say."""
    text = log.read_text(encoding="utf-8", errors="replace")
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return explained(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out.parent)), out)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line[0].isspace()]
    last = " / ".join([line for line in lines if not line.endswith(":")][-3:]) or "it said nothing"
    ended = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}, without its file"
    cure = "; ".join(filter(None, (_cure(config, text), after)))
    return StageError(f"llama.cpp's converter {ended}: {last}", where=str(log), cure=cure)


def _cure(config: Config, text: str) -> str:
    folder, otherwise = find_converter(str(config.merge.gguf)).parent, "or merge.gguf=null"
    if "pre-tokenizer was not recognized" in text:
        return f"a base with OpenAI's vocabulary; the tiny model has one of its own, which llama.cpp lacks; {otherwise}"
    if "ModuleNotFoundError" in text or "ImportError" in text:
        packages = f"{folder}/.venv/bin/pip install -r {folder}/requirements.txt"
        return f"python -m venv {folder}/.venv && {packages}, {otherwise}"
    return f"a newer llama.cpp, {otherwise}"


def _check(
    config: Config, model: Path, out: Path, log: Path, *, parameters: int | None = None, after: str = ""
) -> None:
    """Hold what was written against the model's ``config.json``, and its tensors where it has some."""
    try:
        header = read_header(out)
        name = family_of(config.model.architecture.model_type).gguf
        wrong = differences(header, name, json.loads((model / "config.json").read_text(encoding="utf-8")))
        if parameters is not None:
            wrong += missing(header, out.stat().st_size, parameters=parameters, types=TYPES[config.merge.format])
    except ValueError as error:
        wrong = [str(error)]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        cure = "; ".join(filter(None, ("a newer llama.cpp, or merge.gguf=null", after)))
        raise StageError(f"what the converter wrote is not the model: {wrong[0]}{more}", where=str(log), cure=cure)
