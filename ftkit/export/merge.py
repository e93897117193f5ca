"""Merging: adapter and base become one model, which is loaded again and compared before it counts as done.

A model that was trained whole (lora=none) takes the same way: it is written in ``merge.format`` and compared.

python -m ftkit experiment=tiny stage=merge
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.quantization_config import Mxfp4Config

from ftkit.chat.format import parser_of
from ftkit.chat.messages import ModelError
from ftkit.chat.serving_defaults import ServingDefaults
from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.export import calibrate as calibration
from ftkit.families import family_of
from ftkit.files import written_aside
from ftkit.library_logs import libraries_to, told_of_weights
from ftkit.models.loading import check_complete, for_inference, load_base, load_tokenizer
from ftkit.training.artifact import check_trained, folder_name
from ftkit.training.checkpoints import saving
from ftkit.training.dataset import rows_to_compare_on, training_row_ids

ROWS, TOKENS = 4, 128
"""Rows compared, and tokens of each: with a vocabulary of 200,000 their logits take 0.4 GiB."""

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
    """What rounding the experts to MXFP4 has cost, and calibration has brought back.

    Attributes:
        weights: norm of the rounding error of all expert weights, as a share of the norm of the weights.
        logits: mean |logit of the exported model − of the merged one before rounding|.
        kept: 1 − ``logits`` ÷ mean |logit of the merged model − of the base|: the share of the training that is left.
        by_rounding: the same before calibration.
        steps: of calibration; 0 where rounding alone kept enough, or none was asked for.
    """

    weights: float
    logits: float
    kept: float
    by_rounding: float
    steps: int

    def __str__(self) -> str:
        text = f", and rounding to MXFP4 by {self.logits:.2g} (expert weights by {self.weights:.1%})"
        text += f": {self.kept:.0%} of the training is kept"
        return text + (f", {self.by_rounding:.0%} before {self.steps} steps of calibration" if self.steps else "")


@dataclass(frozen=True)
class MergeResult:
    """How the merged model, read back from its files, compares.

    Attributes:
        format: of its weights, ``merge.format``.
        rows: rows compared.
        kind: which rows they are: ``held-out``, or ``training`` where none is held out.
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
    kind: str
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
            f"read back and compared on {self.tokens} tokens of {self.rows} {self.kind} rows in {self.format}: "
            f"logits differ by {self.mean_difference:.1e} on average and {self.max_difference:.1e} at most; "
            f"training changed them by {self.mean_change:.2g}{self.rounding or ''}"
        )


def merge(
    config: Config,
    *,
    trained: Path,
    tokens: Path,
    out: Path,
    serving: ServingDefaults,
    watched: Callable[[Path, int], AbstractContextManager[None]] = lambda folder, total: nullcontext(),
    counted: Callable[[], AbstractContextManager[Callable[[int, int], object]]] = lambda: nullcontext(lambda *_: None),
) -> MergeResult:
    """Merge a finished adapter into its base, or take the model that was trained, and write it to ``out``.

    Args:
        config: the whole configuration; ``merge.format`` is the format of the files.
        trained: folder that ``train`` wrote.
        tokens: parquet file of ``prepare``, for held-out rows to compare on.
        out: folder of the merged model; replaced when the new one has passed, else left as it is.
        serving: written to ``ftkit.json`` in it, for whoever serves the model.
        watched: entered with the folder and the bytes of all tensors while these are written.
        counted: entered while they are read back; gives what is told of them, see ``told_of_weights``.

    Raises:
        StageError: the training is unfinished or for another base, the disk is full, or the model that was read back
            is not what was merged; no folder is left then.
    """
    check_trained(trained, config)
    form = config.merge.format
    with libraries_to(None):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        rows, kind = rows_to_compare_on(tokens, limit=ROWS, longest=TOKENS)
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
            meant, rounding = to_mxfp4(merged, config, tokens, partial(logits, rows=rows), of_base, before)
        with saving(out), written_aside(out) as aside:
            with watched(aside, bytes_of(merged, packed=rounding is not None)):
                write(merged, tokenizer, aside, serving, packed=rounding is not None)
            del merged
            gc.collect()
            with counted() as more, told_of_weights(more):
                again = read_back(aside, config, device, packed=rounding is not None)
            result = compare(of_base, meant, logits(again, rows), config, partial(noise, again, rows))
            parameters = sum(p.numel() for p in again.parameters())
        return MergeResult(**result, rows=len(rows), kind=kind, parameters=parameters, rounding=rounding)


def to_mxfp4(
    merged: PreTrainedModel,
    config: Config,
    tokens: Path,
    measure: Callable[[PreTrainedModel], Tensor],
    of_base: Tensor,
    before: Tensor,
) -> tuple[Tensor, Rounding]:
    """Round the experts in place, and calibrate where rounding keeps less than ``merge.keep`` of the training.

    Args:
        merged: the dense merged model.
        tokens: parquet file of ``prepare``, for training rows to calibrate on.
        measure: logits of a model on the held-out rows.
        of_base: those of the base model.
        before: those of the merged model.

    Returns:
        Logits of the model as it is then, and what rounding has cost.

    Raises:
        StageError: less than ``merge.keep`` is kept.
    """
    asked, steps = config.merge.keep, config.merge.calibration_steps
    change = (before - of_base).abs().mean().item()

    def kept(after: Tensor) -> float:
        lost = (after - before).abs().mean().item()
        return round(1 - lost / change, 2) + 0.0 if lost else 1.0  # -0.0 + 0.0 is 0.0

    rows = training_row_ids(tokens, limit=calibration.ROWS, longest=calibration.TOKENS) if steps else []
    wanted = calibration.targets(merged, rows)
    error = family_of(merged.config.model_type).packed.round_experts(merged)
    after = measure(merged)
    by_rounding = kept(after)
    if by_rounding >= asked or not rows:
        steps = 0
    else:
        calibration.calibrate(merged, rows, wanted, steps)
        after = measure(merged)
    rounding = Rounding(error, (after - before).abs().mean().item(), kept(after), by_rounding, steps)
    if not rounding.kept >= asked:
        raise _too_little_kept(config, rounding)
    return after, rounding


def _too_little_kept(config: Config, rounding: Rounding) -> StageError:
    """Cures in the order of what was measured to keep most."""
    run, more = f"{config.run.outputs}/{config.run.name}", 300 if not rounding.steps else 4 * rounding.steps
    learnt = not rounding.steps or rounding.kept > rounding.by_rounding
    unmerged = (
        f"stage=deploy deployment=local 'deployment.adapters={{tuned: {run}}}' (the adapter unmerged, nothing lost)"
    )
    calibrated = f" after {rounding.steps} steps of calibration, {rounding.by_rounding:.0%} before"
    return StageError(
        f"MXFP4 keeps {rounding.kept:.0%} of what training changed"
        f"{calibrated if rounding.steps else ''}, and merge.keep asks for {config.merge.keep:.0%}; it was not kept",
        cure=("\n" + " " * 9).join(
            [
                *([unmerged] if config.lora else []),
                *([f"merge.calibration_steps={more}"] if learnt else []),
                "merge.format=bf16 (three times the size)",
            ]
        ),
    )


def write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, serving: ServingDefaults, *, packed: bool
) -> None:
    """Write the model, the tokenizer with its chat template, the generation defaults and ``ftkit.json``.

    Args:
        packed: whether the experts go into MXFP4; ``round_experts`` has been called then.
    """
    try:
        stops = parser_of(tokenizer).stop_ids
    except ModelError as error:
        raise StageError(str(error), cure="model.tokenizer=<a tokenizer with the model's chat template>") from error
    assert model.generation_config is not None
    model.generation_config.eos_token_id = stops
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[-1]
    model.generation_config.pad_token_id = padding
    model.config.eos_token_id, model.config.pad_token_id = stops[0], padding
    model.config.use_cache = True
    family = family_of(model.config.model_type)
    if packed:
        family.packed.save_packed(model, folder)
    else:
        # A model that came from MXFP4 would be saved under names that its dense architecture does not find again.
        model.save_pretrained(folder, save_original_format=not family.mxfp4)
    tokenizer.save_pretrained(folder)
    serving.write(folder)


def bytes_of(model: PreTrainedModel, *, packed: bool) -> int:
    """Bytes that the model's tensors take in its files; see ``write``."""
    if packed:
        return family_of(model.config.model_type).packed.packed_bytes(model)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def read_back(folder: Path, config: Config, device: torch.device, *, packed: bool) -> PreTrainedModel:
    """Load a whole model from a folder, as any user of it would.

    Args:
        packed: whether its experts are in MXFP4; they are unpacked.

    Raises:
        StageError: its files lack weights or hold others.
    """
    has_experts = config.model.architecture.num_local_experts is not None
    experts = {"experts_implementation": for_inference(config.model).experts_implementation} if has_experts else {}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=getattr(torch, DTYPES[config.merge.format]),
        **({"quantization_config": Mxfp4Config(dequantize=True)} if packed else {}),
        attn_implementation="eager",
        **experts,
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
    router = family_of(model.config.model_type).router
    for name, weight in model.named_parameters():
        if ".layers." in name and weight.ndim > 1 and not any(part in name for part in router):
            drawn = torch.randint(0, 8, weight.shape, dtype=torch.int16, device=device, generator=generator)
            weight.view(torch.int16).bitwise_xor_((drawn == 0).short())


@torch.no_grad()
def logits(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """Logits of every position of all rows, one row at a time; float32 on the CPU, (positions, vocabulary)."""
    device = next(model.parameters()).device
    return torch.cat(
        [model(input_ids=torch.tensor([row], device=device), use_cache=False).logits[0].float().cpu() for row in rows]
    )
