"""The model in a deployment's folder: found, checked, loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ftkit.chat.messages import ModelError
from ftkit.families import FAMILIES

PLAIN_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes of transformers, before and after its fifth release, that are what ``tokenizer.json`` says and no more."""


def find_model(root: Path, depth: int = 4) -> Path:
    """The one folder with a config.json in or below ``AZUREML_MODEL_DIR``; folders inside a model are not searched.

    Raises:
        ModelError: there is none, or several.
    """
    found, level = [], [root]
    for _ in range(depth + 1):
        models = [folder for folder in level if (folder / "config.json").is_file()]
        found += models
        inside = [path for folder in level if folder not in models and folder.is_dir() for path in folder.iterdir()]
        level = sorted(path for path in inside if path.is_dir() and not path.name.startswith("."))
    if len(found) != 1:
        names = ", ".join(str(folder.relative_to(root)) for folder in found)
        what = f"several models ({names})" if found else "no folder with a config.json"
        raise ModelError(f"AZUREML_MODEL_DIR={root} holds {what}; one model is served")
    return found[0]


def check_weights(folder: Path) -> None:
    """See that every weights file is there and whole, before minutes go into loading.

    Raises:
        ModelError: names the file.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / "model.safetensors.index.json"
    try:
        names = json.loads(path.read_bytes())["weight_map"].values() if path.exists() else ["model.safetensors"]
        for path in sorted(folder / name for name in set(names)):
            with safe_open(path, framework="np"):  # "pt" imports torch
                pass
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing") from error
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{path} is truncated or damaged: {error}") from error


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer of transformers.

    ``AutoTokenizer`` imports torch, which takes seconds and 200 MB in each process; one that is its ``tokenizer.json``
    and no more can do without.
    """
    if _is_plain(folder):
        from transformers import PreTrainedTokenizerFast as Tokenizer
    else:
        from transformers import AutoTokenizer as Tokenizer

    return Tokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _is_plain(folder: Path) -> bool:
    """Whether ``AutoTokenizer`` would read ``tokenizer.json`` and nothing else."""
    try:
        model = json.loads((folder / "config.json").read_bytes())["model_type"]
        declared = json.loads((folder / "tokenizer_config.json").read_bytes())
        is_declared = declared.get("tokenizer_class") in PLAIN_TOKENIZERS and "auto_map" not in declared
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    # of some other families transformers knows better than their files, and of Mistral's it prefers tekken.json
    is_known = model in FAMILIES and not (folder / "tekken.json").exists()
    return is_declared and is_known and (folder / "tokenizer.json").is_file()


def load_model(folder: Path) -> Any:
    """The model of transformers, whole and in one piece: on the GPU in bfloat16, else in float32.

    Raises:
        ModelError: it lacks weights or has others, or does not fit into the GPU's memory.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.quantization_config import Mxfp4Config

    cuda = torch.cuda.is_available()
    # in bfloat16, rounding decides a token now and then, and it depends on the batch: 2 answers in 10,000 differed
    options: dict[str, Any] = {"dtype": torch.bfloat16 if cuda else torch.float32}
    options["device_map"] = "auto" if cuda else None
    options["attn_implementation"] = "eager"  # the batch makes its own masks
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    packed = getattr(config, "quantization_config", None) or {}
    if packed.get("quant_method") == "mxfp4":
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    options |= {"trust_remote_code": False, "use_safetensors": True}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, **options
    )
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if wrong := sorted(map(str, info.get(kind) or ())):
            raise ModelError(f"{folder} has {kind.replace('_', ' ')}: {wrong[0]}, {len(wrong)} in all")
    if {"cpu", "disk"} & {str(place) for place in getattr(model, "hf_device_map", {}).values()}:
        raise ModelError(f"{folder} does not fit into the memory of the GPU")
    return model.eval()
