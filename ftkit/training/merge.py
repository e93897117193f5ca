"""Merging: adapter and base become one model, which is loaded again and compared before it counts as done.

A model that was trained whole (lora=none) takes the same way: it is written in ``merge.format`` and compared.

python -m ftkit experiment=tiny stage=merge
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.quantization_config import Mxfp4Config

from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.files import written_aside
from ftkit.quiet import libraries_to
from ftkit.training.checkpoints import saving
from ftkit.training.dataset import heldout_rows
from ftkit.training.model import check_complete, for_inference, load_base, load_tokenizer
from ftkit.training.packed import round_experts, save_packed
from ftkit.training.trained import check_trained, folder_name

STOPS = ("<|return|>", "<|call|>", "<|endoftext|>")
"""Tokens that end an answer. ``<|end|>`` is none: it ends the analysis, and a model that stops there never answers."""

ROWS, TOKENS = 4, 128
"""Rows compared, and tokens of each: at gpt-oss's vocabulary their logits take 0.4 GiB."""

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "mxfp4": "bfloat16"}
"""Precision of the weights that stay dense, for each ``merge.format``."""

TOLERANCE = {"fp32": 1e-3, "bf16": 0.05, "mxfp4": 0.05}
"""Greatest difference, as a share of the logits' spread: of the maximum in fp32, of the mean else, where rounding may
send a token to another expert."""

NOISE = 2
"""Or else, beside fp32, greatest difference as a multiple of ``noise``: rounding alone moves the logits of a model that
routes indecisively by more than ``TOLERANCE``."""


@dataclass(frozen=True)
class Rounding:
    """What rounding the experts to MXFP4 has cost.

    Attributes:
        weights: norm of the rounding error of all expert weights, as a share of the norm of the weights.
        logits: mean |logit after rounding − before|, in the precision that the merge was computed in.
    """

    weights: float
    logits: float

    def __str__(self) -> str:
        return f", and rounding to MXFP4 by {self.logits:.2g} (expert weights by {self.weights:.1%})"


@dataclass(frozen=True)
class MergeResult:
    """How the merged model, read back from its files, compares.

    Attributes:
        format: of its weights, ``merge.format``.
        rows: held-out rows compared.
        tokens: positions compared, each with a logit for every entry of the vocabulary.
        max_difference: largest |merged − trained| of a logit; trained is the base with its adapter, if it has one.
        mean_difference: mean of the same.
        mean_change: mean |trained − base|: what training changed.
        spread: standard deviation of the logits, against which the differences are held.
        parameters: of the merged model.
        rounding: what MXFP4 has cost; None in other formats.
    """

    format: str
    rows: int
    tokens: int
    max_difference: float
    mean_difference: float
    mean_change: float
    spread: float
    parameters: int
    rounding: Rounding | None

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> MergeResult:
        """The same from its ``asdict``."""
        rounding = kept["rounding"]
        return cls(**{**kept, "rounding": rounding and Rounding(**rounding)})

    @property
    def summary(self) -> str:
        """The comparison in a line."""
        return (
            f"read back and compared on {self.tokens} tokens of {self.rows} held-out rows in {self.format}: "
            f"logits differ by {self.mean_difference:.1e} on average and {self.max_difference:.1e} at most; "
            f"training changed them by {self.mean_change:.2g}{self.rounding or ''}"
        )


def merge(config: Config, *, trained: Path, tokens: Path, out: Path, serving: dict[str, Any]) -> MergeResult:
    """Merge a finished adapter into its base, or take the model that was trained, and write it to ``out``.

    Args:
        config: the whole configuration; ``merge.format`` is the format of the files.
        trained: folder that ``train`` wrote.
        tokens: parquet file of ``prepare``, for held-out rows to compare on.
        out: folder of the merged model; replaced when the new one has passed, else left as it is.
        serving: written to ``ftkit.json`` in it, for whoever serves the model.

    Raises:
        StageError: the training is unfinished or for another base, the disk is full, or the model that was read back
            is not what was merged; no folder is left then.
    """
    check_trained(trained, config)
    form = config.merge.format
    with libraries_to(None):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        rows = heldout_rows(tokens, limit=ROWS, longest=TOKENS)
        eager = config.model.model_copy(update={"attn_implementation": "eager"})
        base = load_base(eager, dtype=DTYPES[form], device=device)
        tokenizer = load_tokenizer(config.model)
        of_base = logits(base, rows)
        if config.lora:
            with_adapter = PeftModel.from_pretrained(base, str(trained)).eval()
            of_trained = logits(with_adapter, rows)
            merged = with_adapter.merge_and_unload()
            del base, with_adapter
        else:
            del base
            merged = read_back(trained, config, device, packed=False)
            of_trained = logits(merged, rows)
        meant, rounding = of_trained, None
        if form == "mxfp4":
            before = logits(merged, rows)
            compare(of_base, of_trained, before, config, partial(noise, merged, rows))
            error, meant = round_experts(merged), logits(merged, rows)
            rounding = Rounding(error, (meant - before).abs().mean().item())
        with saving(out), written_aside(out) as aside:
            write(merged, tokenizer, aside, serving, packed=rounding is not None)
            del merged
            gc.collect()
            again = read_back(aside, config, device, packed=rounding is not None)
            result = compare(of_base, meant, logits(again, rows), config, partial(noise, again, rows))
            parameters = sum(p.numel() for p in again.parameters())
        return MergeResult(**result, rows=len(rows), parameters=parameters, rounding=rounding)


def write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, serving: dict[str, Any], *, packed: bool
) -> None:
    """Write the model, the tokenizer with its chat template, the generation defaults and ``ftkit.json``.

    Args:
        packed: whether the experts go into MXFP4; ``round_experts`` has been called then.
    """
    stops = [tokenizer.convert_tokens_to_ids(name) for name in STOPS]
    if any(stop is None or stop == tokenizer.unk_token_id for stop in stops):
        raise StageError(f"the tokenizer lacks one of {', '.join(STOPS)}", cure="use a gpt-oss tokenizer")
    assert model.generation_config is not None
    model.generation_config.eos_token_id = stops
    model.generation_config.pad_token_id = stops[-1]
    model.config.eos_token_id, model.config.pad_token_id = stops[0], stops[-1]
    model.config.use_cache = True
    if packed:
        save_packed(model, folder)
    else:
        # By default a model that came from MXFP4 is saved under names that the dense architecture does not find again.
        model.save_pretrained(folder, save_original_format=False)
    tokenizer.save_pretrained(folder)
    (folder / "ftkit.json").write_text(json.dumps(serving, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_back(folder: Path, config: Config, device: torch.device, *, packed: bool) -> PreTrainedModel:
    """Load a whole model from a folder, as any user of it would.

    Args:
        packed: whether its experts are in MXFP4; they are unpacked.

    Raises:
        StageError: its files lack weights or hold others.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, DTYPES[config.merge.format]),
        **({"quantization_config": Mxfp4Config(dequantize=True)} if packed else {}),
        attn_implementation="eager",
        experts_implementation=for_inference(config.model).experts_implementation,
        device_map={"": str(device)} if device.type != "cpu" else None,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # check_complete names them
    )
    model, info = loaded
    check_complete(info, str(folder))
    return model


def compare(
    of_base: Tensor, meant: Tensor, of_merged: Tensor, config: Config, noise: Callable[[], float]
) -> dict[str, Any]:
    """Hold the logits, float32 (positions, vocabulary), against each other.

    Args:
        of_base: of the base model.
        meant: of what was trained, or of it with experts that were rounded to MXFP4.
        of_merged: of the model that was read back.
        noise: of that model, see ``noise``.

    Raises:
        StageError: the model that was read back differs from the one meant by more than ``TOLERANCE`` and ``NOISE``,
            or the training changes nothing.
    """
    difference, spread = (of_merged - meant).abs(), meant.std().item()
    largest, mean, change = difference.max().item(), difference.mean().item(), (meant - of_base).abs().mean().item()
    form, what = config.merge.format, folder_name(config)
    kind, measured = ("max", largest) if form == "fp32" else ("mean", mean)
    if change == 0:
        raise StageError(f"the {what} changes nothing: its logits are the base model's", cure="stage=train force=true")
    own = 0.0 if measured <= TOLERANCE[form] * spread or form == "fp32" else noise()
    if not measured <= max(TOLERANCE[form] * spread, NOISE * own):
        raise StageError(
            f"the merged model differs from {'base and adapter' if config.lora else 'what was trained'}: "
            f"{kind} difference of logits {measured:.3g}, spread {spread:.3g}, tolerance {TOLERANCE[form]:g} of it"
            + (f", rounding alone {own:.3g}" if own else "")
            + "; it was not kept",
            cure="merge.format=fp32" if form != "fp32" else "use the versions in environment/requirements.txt",
        )
    return {
        "format": form,
        "tokens": len(of_merged),
        "max_difference": largest,
        "mean_difference": mean,
        "mean_change": change,
        "spread": spread,
    }


def noise(model: PreTrainedModel, rows: list[list[int]]) -> float:
    """Mean difference of a bfloat16 model's logits when its layers' weights are changed as much as rounding does."""
    usual = logits(model, rows)
    _flip_last_bits(model)
    changed = logits(model, rows)
    _flip_last_bits(model)
    return (changed - usual).abs().mean().item()


@torch.no_grad()
def _flip_last_bits(model: PreTrainedModel) -> None:
    """Change every eighth weight of attention and experts by its last bit; a second call takes it back.

    That is a variance of 1/8 of a squared unit in the last place; rounding's is 1/12.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in model.named_parameters():
        if ".layers." in name and weight.ndim > 1 and ".router." not in name:
            drawn = torch.randint(0, 8, weight.shape, dtype=torch.int16, device=device, generator=generator)
            weight.view(torch.int16).bitwise_xor_((drawn == 0).short())


@torch.no_grad()
def logits(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """Logits of every position of all rows, one row at a time; float32 on the CPU, (positions, vocabulary)."""
    device = next(model.parameters()).device
    return torch.cat(
        [model(input_ids=torch.tensor([row], device=device), use_cache=False).logits[0].float().cpu() for row in rows]
    )
