"""One training process among several, started by torchrun with CONFIG TOKENS OUT CHECKPOINTS RESULT [LABEL]."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from ftkit.config.resolve import load_frozen
from ftkit.errors import FtkitError
from ftkit.processes import end_now, first_process
from ftkit.training.launch import report
from ftkit.training.train import train
from ftkit.translation import speak


def main() -> int:
    """Train; returns the exit status. Rank 0 reports the result, the first rank that fails its error."""
    config, tokens, out, checkpoints, result = map(Path, sys.argv[1:6])
    label = "".join(sys.argv[6:])
    try:
        frozen = load_frozen(config)
        speak(frozen.language)
        outcome = train(frozen, tokens=tokens, out=out, checkpoints=checkpoints, label=label)
    except FtkitError as error:
        report(result, error)
        return error.exit_status
    if first_process():
        report(result, asdict(outcome))
    return 0


if __name__ == "__main__":
    end_now(main())
