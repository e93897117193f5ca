"""What an adapter does to the log-probabilities of a few rows: the trainer's word, and an engine's held against it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ftkit.chat.messages import ModelError

FILE = "effect.json"
WHOLE = "whole"
"""Name of the whole adapter among its parts."""
ROUNDED, SHARE = 2 * math.sqrt(2), 0.1
"""Rounding explains this many times what an engine computes otherwise without the adapter, since a change is a
difference of two roundings, and this share of the trainer's change besides: two ways to compute in bfloat16 with 0.026
nats between them were 0.110 apart once an adapter had changed what they compute by 1.957."""
LEAST = 1e-4
"""Nats of rounding that are taken for granted."""

Logprobs = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Effect:
    """Log-probabilities that the trainer's model gives the tokens of a few rows.

    Attributes:
        rows: token ids, (rows)(length).
        base: of each token but the first, in nats, without the adapter; (rows)(length − 1).
        parts: the same with parts of the adapter alone (``attention``, ``experts``) and with all of it (``whole``).
    """

    rows: Sequence[Sequence[int]]
    base: Logprobs
    parts: Mapping[str, Logprobs]

    def write(self, path: Path) -> None:
        """Write it, log-probabilities to five decimals."""
        content = asdict(self)
        content["base"] = _rounded(self.base)
        content["parts"] = {name: _rounded(found) for name, found in self.parts.items()}
        path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Effect:
        """Read one.

        Raises:
            ModelError: it cannot be read.
        """
        try:
            found = cls(**json.loads(path.read_bytes()))
            sizes = [[len(row) - 1 for row in found.rows]] * (1 + len(found.parts))
            if WHOLE not in found.parts or sizes != [[*map(len, of)] for of in (found.base, *found.parts.values())]:
                raise ValueError("it lacks rows")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"{path} cannot be read: {error}; stage=train force=true writes it anew") from error
        return found

    def compare(self, base: Logprobs, adapted: Logprobs) -> str:
        """Hold an engine's log-probabilities of the same tokens against the trainer's.

        The engine's change by the adapter, a root mean square in nats, is held against the trainer's change by all of
        the adapter, by a part of it and by none. What the two compute otherwise without the adapter is rounding.

        Args:
            base: the engine's without the adapter.
            adapted: with it.

        Returns:
            What was found, in words.

        Raises:
            ModelError: the engine leaves the adapter or a part of it out, or does something else than the trainer.
        """
        own = _flat(adapted) - _flat(base)
        effects = {name: _flat(found) - _flat(self.base) for name, found in self.parts.items()}
        off = {name: _root_mean_square(own - effect) for name, effect in effects.items()}
        off[""] = _root_mean_square(own)
        whole, rounding = _root_mean_square(effects[WHOLE]), _root_mean_square(_flat(base) - _flat(self.base))
        limit = ROUNDED * max(rounding, LEAST) + SHARE * whole
        explained = {name for name, value in off.items() if value <= limit}
        figures = (
            f"with it {own.size:,} log-probabilities of {len(self.rows)} rows change by {off['']:.3f} nats, "
            f"{off[WHOLE]:.3f} from the trainer's change of {whole:.3f}; without it {rounding:.3f} from the trainer's"
        )
        if WHOLE in explained:
            unclear = " or ".join(name or "no adapter" for name in off if name in explained and name != WHOLE)
            return f"{f'not to be told from {unclear}' if unclear else 'as trained'}: {figures}"
        nearest = min(off, key=lambda name: off[name])
        missing = [name for name in effects if name not in (WHOLE, nearest)] if nearest else ["all of it"]
        does = f"leaves {' and '.join(missing)} out" if nearest in explained else "applies it otherwise than training"
        raise ModelError(f"the engine {does}: {figures}; deployment.engine=transformers applies it as trained")


def _flat(rows: Logprobs) -> np.ndarray:
    """float64 (all tokens,)."""
    return np.concatenate([np.asarray(row, np.float64) for row in rows])


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _rounded(rows: Logprobs) -> list[list[float]]:
    return [[round(float(value), 5) for value in row] for row in rows]
