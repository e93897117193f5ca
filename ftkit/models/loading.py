"""Loading the base model and its tokenizer, the tiny one and the real one by the same path."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.assets import asset_path
from ftkit.config.groups import Model
from ftkit.errors import FtkitError, StageError
from ftkit.families import family_of
from ftkit.files import user_path
from ftkit.models.untrusted import check_folder, check_normalizer, say_what_is_not_run
from ftkit.packages import require_train_extra

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEY = "model.pretrained_model_name_or_path"
PADDING = "<|endoftext|>"
"""What pads rows where a tokenizer names no token for it, if it has this one; else the token that ends a text."""


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token; from ``model.tokenizer`` where the model itself is not here.

    Raises:
        StageError: it cannot be found or read.
    """
    from transformers import AutoTokenizer

    if model.tokenizer and not model.folder:
        model = model.model_copy(update={"pretrained_model_name_or_path": model.tokenizer, "revision": None})
    with _explained(model):
        path, source = _source(model)
        tokenizer = AutoTokenizer.from_pretrained(path, **source, trust_remote_code=False)
    check_normalizer(tokenizer.backend_tokenizer, path)
    say_what_is_not_run(tokenizer.init_kwargs.get("auto_map"), path)
    if tokenizer.pad_token_id is None:
        there = tokenizer.convert_tokens_to_ids(PADDING) not in (None, tokenizer.unk_token_id)
        tokenizer.pad_token = PADDING if there else tokenizer.eos_token
    return tokenizer


def load_base(
    model: Model,
    *,
    dtype: str | None = None,
    device: torch.device | None = None,
    training: bool = False,
) -> PreTrainedModel:
    """The base model.

    An MXFP4 checkpoint is unpacked to ``dtype``, but for training with ``model.weights=mxfp4``. ftkit's own attention
    and experts are for training only; else the model gets ones that generate.

    Args:
        model: which one, and how it computes.
        dtype: precision of the weights; ``model.dtype`` if not given.
        device: where the weights go; the CPU if not given.
        training: whether it will be trained.

    Raises:
        StageError: it cannot be found or read, its shape is not ``model.architecture``, or its files lack weights.
    """
    require_train_extra()
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import Mxfp4Config

    model = model if training else for_inference(model)
    path, source, config = _configuration(model)
    family = family_of(config.model_type)
    family.training.register()
    quantization = getattr(config, "quantization_config", None)
    method = (quantization or {}).get("quant_method")
    if method not in (None, "mxfp4"):
        raise StageError(
            f"its weights are in {method}; ftkit reads dense weights and MXFP4", where=path, cure=f"{KEY}=…"
        )
    if training and model.weights == "mxfp4":
        if method != "mxfp4":
            raise StageError(
                "model.weights=mxfp4, but this checkpoint's experts are dense", where=path, cure="model.weights=dense"
            )
        with _explained(model):
            config.use_cache = False
            loaded, info = family.packed.load_packed(path, source, config, model, device or torch.device("cpu"))
        check_complete(info, path)
        return loaded
    options: dict[str, Any] = {"quantization_config": Mxfp4Config(dequantize=True)} if method else {}
    if family.expert_tensors:
        options["experts_implementation"] = model.experts_implementation
    wanted = getattr(torch, dtype or model.dtype)
    with _explained(model):
        pair: Any = AutoModelForCausalLM.from_pretrained(
            path,
            **source,
            trust_remote_code=False,
            use_safetensors=True,  # a pickle may be a program
            dtype=wanted,
            attn_implementation=model.attn_implementation,
            device_map={"": str(device)} if device is not None and device.type != "cpu" else None,
            use_cache=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_complete names them
            **options,
        )
    loaded, info = pair
    check_complete(info, path)
    for parameter in loaded.parameters():  # transformers 5.17 unpacks MXFP4 to bfloat16, whatever is asked
        parameter.data = parameter.data.to(wanted)
    return loaded


def holds_mxfp4(model: Model) -> bool:
    """Whether the checkpoint's experts are in MXFP4.

    Raises:
        StageError: its configuration cannot be found or read, or its shape is not ``model.architecture``.
    """
    require_train_extra()
    quantization = getattr(_configuration(model)[2], "quantization_config", None)
    return (quantization or {}).get("quant_method") == "mxfp4"


def hollow_base(model: Model, dtype: str) -> PreTrainedModel:
    """The base model for training without its weights: parameters of the right shapes that take no memory.

    Each repeats one number of its own. On the meta device all would have the address 0, and accelerate finds an
    optimiser's parameters again by their addresses.

    Args:
        model: which one, and how it computes.
        dtype: precision of the weights.

    Raises:
        StageError: its configuration cannot be found or read, or its shape is not ``model.architecture``.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    _, _, config = _configuration(model)
    family = family_of(config.model_type)
    family.training.register()
    experts = {"experts_implementation": model.experts_implementation} if family.expert_tensors else {}
    config.use_cache = False
    with init_empty_weights(include_buffers=False):
        made = AutoModelForCausalLM.from_config(
            config,
            dtype=getattr(torch, dtype),
            attn_implementation=model.attn_implementation,
            **experts,
            trust_remote_code=False,
        )
    for module in made.modules():
        for name, empty in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(torch.zeros(1, dtype=empty.dtype).expand(empty.shape)))
    return made


def save_without_weights(model: Model, folder: Path) -> None:
    """Write the model's configuration and its tokenizer to a folder.

    Raises:
        StageError: they cannot be found or read, or its shape is not ``model.architecture``.
    """
    _, _, config = _configuration(model)
    config.save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)


IN_PLACE_OF = {"ftkit_sinks": "eager", "ftkit_varlen": "sdpa"}
"""Attention that generates, for each of ftkit's own."""


def for_inference(model: Model) -> Model:
    """The same with attention and experts that generate, in place of ftkit's own."""
    attention, experts = model.attn_implementation, model.experts_implementation
    return model.model_copy(
        update={
            "attn_implementation": IN_PLACE_OF.get(attention, attention),
            "experts_implementation": "grouped_mm" if experts == "ftkit_lora" else experts,
        }
    )


def check_complete(info: dict[str, Any], path: str) -> None:
    """See that loading found every weight and nothing besides.

    A weight that is missing is drawn at random by transformers, with no more than a warning.

    Args:
        info: what ``from_pretrained(…, output_loading_info=True)`` gave.
        path: what was loaded, for the message.

    Raises:
        StageError: weights are missing, unexpected or of another shape.
    """
    for kind, said in (
        ("missing_keys", "missing"),
        ("unexpected_keys", "unexpected"),
        ("mismatched_keys", "of another shape"),
    ):
        if names := sorted(key if isinstance(key, str) else key[0] for key in info.get(kind) or ()):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise StageError(f"weights are {said}: {names[0]}{more}", where=path, cure="download the model again")


def check_architecture(model: Model, config: Any) -> None:
    """See that ``model.architecture``, which ``plan`` calculates with, is the checkpoint's.

    Raises:
        StageError: a value differs, or it is no causal language model.
    """
    stated = model.architecture.model_dump()
    try:
        actual = family_of(config.model_type).shape(config.to_dict())
    except KeyError as error:
        raise StageError(
            f"{model.pretrained_model_name_or_path} is a {config.model_type}, which is no causal language model of a "
            f"shape that ftkit knows: it has no {error}",
            cure=f"{KEY}=…",
        ) from error
    for key, value in stated.items():
        if actual[key] != value:
            raise StageError(
                f"model.architecture.{key} is {value}, and the checkpoint has {actual[key]}",
                where=model.pretrained_model_name_or_path,
                cure=f"model.architecture.{key}={actual[key]}, or another {KEY}",
            )


def _configuration(model: Model) -> tuple[str, dict[str, Any], Any]:
    """A folder or a hub id, how to read it, and the model's configuration, which agrees with ``model.architecture``."""
    from transformers import AutoConfig

    with _explained(model):
        path, source = _source(model)
        config = AutoConfig.from_pretrained(path, **source, trust_remote_code=False)
    say_what_is_not_run(getattr(config, "auto_map", None), path)
    check_architecture(model, config)
    return path, source, config


def _source(model: Model) -> tuple[str, dict[str, Any]]:
    """A folder or a hub id, and how to read it.

    The hub is asked once if it answers: from_pretrained asks five times for each before it turns to the cache.
    """
    path = model.folder or asset_path(model.pretrained_model_name_or_path)
    if _is_folder(path):
        folder = Path(path).expanduser()
        check_folder(folder)
        return str(folder), {}
    from huggingface_hub import HfApi, errors

    try:
        HfApi().model_info(path, revision=model.revision, timeout=10)
        cached = False
    except Exception as error:
        if not (isinstance(error, errors.OfflineModeIsEnabled) or _is_about_transport(error)):
            raise
        cached = True
    return path, {"revision": model.revision, "local_files_only": cached}


def _is_folder(path: str) -> bool:
    """Whether it is a folder; False for a hub id.

    Raises:
        StageError: it looks like a path, and there is no such folder.
    """
    folder = user_path(path, KEY)
    if folder.is_dir():
        return True
    looks_local = (
        path.startswith((".", "/", "~")) or path.count("/") > 1 or (folder.parent.is_dir() and folder.parent != Path())
    )
    if looks_local:
        beside = [str(p) for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        close = difflib.get_close_matches(str(folder), beside, n=1)
        raise StageError(
            "there is no such folder", where=path, cure=f"{KEY}={close[0] if close else '<folder or hub id>'}"
        )
    return False


@contextmanager
def _explained(model: Model) -> Iterator[None]:
    """Errors of the hub and of reading a checkpoint in the user's terms."""
    from huggingface_hub import constants, errors
    from safetensors import SafetensorError

    name, download = model.pretrained_model_name_or_path, f"{KEY}=<a folder that holds the model>"
    damaged = f"the weights of {name} cannot be read: the download was cut off or the file is damaged"
    kinds: tuple[tuple[tuple[type[Exception], ...], str, str], ...] = (
        (
            (errors.GatedRepoError,),
            f"{name} is gated: its owner asks you to accept terms first",
            "accept them on its page, then set HF_TOKEN",
        ),
        (
            (errors.RevisionNotFoundError,),
            f"{name} has no revision {model.revision!r}",
            "model.revision=null takes the newest",
        ),
        (
            (errors.RepositoryNotFoundError, errors.HFValidationError),
            f"the hub has no {name}, or not for you",
            f"set HF_TOKEN if it is private, or {download}",
        ),
        (
            (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError),
            f"{name} is not in the local cache, and "
            + ("HF_HUB_OFFLINE forbids to fetch it" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"),
            ("unset HF_HUB_OFFLINE, or " if constants.HF_HUB_OFFLINE else "") + download,
        ),
        ((SafetensorError,), damaged, "download the model again"),
    )
    try:
        yield
    except (FtkitError, MemoryError):
        raise
    except RuntimeError as error:
        if "conversion of the weights" not in str(error):  # memory may be full, for instance
            raise
        raise StageError(damaged, where=name, cure="download the model again") from error
    except Exception as error:  # libraries raise anything at files that are not what they expect
        chain = list(_chain(error))
        if "trust_remote_code" in str(error):
            raise StageError(
                f"{name} brings code of its own, and cannot be loaded without; ftkit runs no code of a checkpoint",
                where="auto_map in its config.json or tokenizer_config.json",
                cure=f"{KEY}=<a checkpoint that transformers knows>",
            ) from error
        for types, what, cure in kinds:
            if any(isinstance(link, types) for link in chain):
                raise StageError(what, where=name, cure=cure) from error
        raise StageError(
            f"the model cannot be loaded: {str(error).strip().partition(chr(10))[0] or type(error).__name__}",
            where=name,
            cure=download,
        ) from error


def _is_about_transport(error: Exception) -> bool:
    """Whether the network failed. By name: huggingface_hub has had more than one HTTP library below it."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
