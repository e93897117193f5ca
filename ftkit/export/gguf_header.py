"""The beginning of a GGUF file: its metadata, and which tensors follow. What a converter wrote is held against it.

The format is that of ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type numbers of metadata and their ``struct`` codes."""
STRING, ARRAY = 8, 9
TENSOR_TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 39: ("MXFP4", 32, 17)}
"""Type numbers of tensors: name, values in a block, bytes of a block."""
ALIGNMENT = 32


@dataclass(frozen=True)
class TensorInfo:
    """One tensor.

    Attributes:
        values: how many.
        type: ``F32``, ``BF16``…; ``type 14`` for one that ftkit does not ask for.
        end: where it ends, in bytes from the first tensor's beginning; None if its type is not known.
    """

    values: int
    type: str
    end: int | None


@dataclass(frozen=True)
class Header:
    """Attributes:
    metadata: by key; an array is its length.
    tensors: by name.
    data: where the tensors begin in the file, in bytes.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    data: int


def read_header(path: Path) -> Header:
    """Read a file's header.

    Raises:
        ValueError: it is no GGUF file, or ends within its header.
    """
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF" or (version := _scalar(stream, "I")) not in (2, 3):
            raise ValueError("it does not begin as a GGUF file of version 2 or 3")
        del version
        tensors, keys = _scalar(stream, "Q"), _scalar(stream, "Q")
        metadata = {_text(stream): _value(stream, _scalar(stream, "I")) for _ in range(keys)}
        infos = {_text(stream): _tensor(stream) for _ in range(tensors)}
        aligned = metadata.get("general.alignment", ALIGNMENT)
        return Header(metadata, infos, -(-stream.tell() // aligned) * aligned)


def differences(header: Header, architecture: str | None, config: Mapping[str, Any]) -> list[str]:
    """What the metadata says otherwise than the model; each would change answers without an error.

    Args:
        architecture: llama.cpp's name of it.
        config: values of ``config.json``, of a mixture of experts with a sliding window.
    """
    rope = config["rope_parameters"]
    of_model = {
        "block_count": config["num_hidden_layers"],
        "embedding_length": config["hidden_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.sliding_window": config["sliding_window"],
        "expert_count": config["num_local_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "rope.freq_base": rope["rope_theta"],
    }
    if rope.get("rope_type") == "yarn":
        of_model["rope.scaling.factor"] = rope["factor"]
        of_model["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    meant = {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in of_model.items()}
    found = {key: header.metadata.get(key, "missing") for key in meant}
    return [
        f"{key} is {found[key]}, and the model's {value}"
        for key, value in meant.items()
        if not _same(found[key], value)
    ]


def _same(found: Any, meant: Any) -> bool:
    if isinstance(found, str) or isinstance(meant, str):
        return found == meant
    return math.isclose(found, meant, rel_tol=1e-6)  # the file has it in float32


def missing(header: Header, size: int, *, parameters: int, types: set[str]) -> list[str]:
    """What a file of ``size`` bytes lacks to hold so many parameters, each in one of ``types``."""
    values = sum(tensor.values for tensor in header.tensors.values())
    other = sorted(name for name, tensor in header.tensors.items() if tensor.type not in types)
    end = header.data + max((tensor.end or 0 for tensor in header.tensors.values()), default=0)
    said = [f"it holds {values:,} parameters, and the model has {parameters:,}"] * (values != parameters)
    said += [f"{name} is stored as {header.tensors[name].type}, not as {' or '.join(sorted(types))}" for name in other]
    return said + [f"it ends after {size:,} bytes of {end:,}"] * (size < end)


def _tensor(stream: BinaryIO) -> TensorInfo:
    values = math.prod(_scalar(stream, "Q") for _ in range(_scalar(stream, "I")))
    kind, offset = _scalar(stream, "I"), _scalar(stream, "Q")
    if kind not in TENSOR_TYPES:
        return TensorInfo(values, f"type {kind}", None)
    name, block, size = TENSOR_TYPES[kind]
    return TensorInfo(values, name, offset + values // block * size)


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _text(stream)
    if kind != ARRAY:
        return _scalar(stream, _code(kind))
    inner, count = _scalar(stream, "I"), _scalar(stream, "Q")
    if inner in (STRING, ARRAY):
        for _ in range(count):
            _value(stream, inner)
    else:
        stream.seek(count * struct.calcsize(f"<{_code(inner)}"), 1)
    return count


def _code(kind: int) -> str:
    if kind not in SCALARS:
        raise ValueError(f"its metadata has a value of the unknown type {kind}")
    return SCALARS[kind]


def _text(stream: BinaryIO) -> str:
    return _bytes(stream, _scalar(stream, "Q")).decode("utf-8", "replace")


def _scalar(stream: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", _bytes(stream, struct.calcsize(f"<{code}")))[0]


def _bytes(stream: BinaryIO, count: int) -> bytes:
    read = stream.read(count)
    if len(read) < count:
        raise ValueError("it ends within its header")
    return read
