"""Which flash attention is used: FlashAttention 4 where it runs and agrees with torch's. The GPU's are stood in for."""

from __future__ import annotations

import math
import os
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.command import REPOSITORY
from torch import Tensor

from ftkit.config.resolve import resolve
from ftkit.errors import StageError
from ftkit.models import flash
from ftkit.models.flash import FlashAttention4, FlashCall, TorchFlash, in_use, take, use
from ftkit.models.varlen import plain_attention
from ftkit.training import build

CPU = torch.device("cpu")
Given = dict[str, Any]


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Given]:
    """A Hopper GPU with flash-attn-4, whose functions compute in plain torch; what the package was given."""
    given: list[Given] = []

    def forward(q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool, **options: Any) -> tuple[Tensor | None, ...]:
        assert return_lse
        given.append(options)
        return *attended(called(options), q, k, v), None, None, None

    def backward(
        q: Tensor, k: Tensor, v: Tensor, o: Tensor, gradient: Tensor, lse: Tensor, *, deterministic: bool,
        **options: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        given.append(options | {"deterministic": deterministic})
        return gradients(called(options), gradient, q, k, v)

    interface = ModuleType("flash_attn.cute.interface")
    interface.__dict__.update(_flash_attn_fwd=forward, _flash_attn_bwd=backward)
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["flash_attn.cute"], "interface", interface, raising=False)
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    monkeypatch.setattr(TorchFlash, "forward", lambda _, call, q, k, v: (*attended(call, q, k, v), q.new_zeros(2)))
    monkeypatch.setattr(
        TorchFlash, "backward", lambda _, call, gradient, q, k, v, *rest: gradients(call, gradient, q, k, v)
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(flash, "version_of", lambda _: "4.0.0b36")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("ENABLED", "DIR"):
        monkeypatch.setenv(f"FLASH_ATTENTION_CUTE_DSL_CACHE_{name}", "")
    monkeypatch.setattr(flash, "_in_use", TorchFlash())
    return given


def called(options: Given) -> FlashCall:
    """The call that the package's arguments stand for."""
    bounds, longest = options["cu_seqlens_q"], options["max_seqlen_q"]
    assert options["cu_seqlens_k"] is bounds and options["max_seqlen_k"] == longest
    left = options.get("window_size_left")
    assert options.get("window_size_right") == (None if left is None else 0)
    assert options.get("causal", False) == (left is None)  # beside a window the package ignores causal
    return FlashCall(bounds, longest, None if left is None else left + 1, options["softmax_scale"])


def attended(call: FlashCall, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    rows = (t.transpose(0, 1)[None] for t in (q, k, v))
    return plain_attention(*rows, call.scale, call.window, None, call.bounds)[0], torch.ones(q.shape[1], len(q))


def gradients(call: FlashCall, gradient: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    with torch.enable_grad():
        return torch.autograd.grad(attended(call, *leaves)[0], leaves, gradient)


def model(*overrides: str):
    return resolve(["stage=plan", "compute=h100x2", *overrides]).model


def test_flash_attention_4_is_used_where_it_agrees_with_torchs(kernels: list[Given]) -> None:
    assert use(model(), CPU, 128) is None
    assert in_use().name == "FlashAttention 4"
    assert [g.get("window_size_left") for g in kernels] == [None, None, 127, 127]
    assert not any(g.get("deterministic") for g in kernels)


def test_a_call_goes_to_what_is_in_use(kernels: list[Given]) -> None:
    take(FlashAttention4())
    q, k, v = (torch.randn(6, heads, 8).bfloat16() for heads in (4, 2, 2))
    call = FlashCall(torch.tensor([0, 2, 6], dtype=torch.int32), 4, 3, 0.5)
    o, *rest = call.forward(q, k, v)
    assert len(rest) == 1 and rest[0].shape == (4, 6)  # no more than lse is handed to the backward pass
    for found, exact in zip(
        (o, *call.backward(o, q, k, v, o, *rest)),
        (attended(call, q, k, v)[0], *gradients(call, o, q, k, v)),
        strict=True,
    ):
        assert torch.equal(found, exact)
    assert kernels[-1]["window_size_left"] == 2


@pytest.mark.parametrize("which", ["_flash_attn_fwd", "_flash_attn_bwd"])
def test_one_that_computes_something_else_is_not_used(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard: the comparison in ``_agree``; a window that is one key too long is enough."""
    interface = sys.modules["flash_attn.cute.interface"]
    right = getattr(interface, which)

    def wrong(*tensors: Tensor, **options: Any) -> tuple[Any, ...]:
        if "window_size_left" in options:
            options["window_size_left"] += 1
        return right(*tensors, **options)

    monkeypatch.setattr(interface, which, wrong)
    said = use(model(), CPU, 32)
    assert said and "flash-attn-4 4.0.0b36 does not run here: it differs from torch's flash attention by " in said
    assert isinstance(in_use(), TorchFlash)
    with pytest.raises(StageError, match=r"differs from torch's") as caught:
        use(model("model.flash_attention=fa4"), CPU, 32)
    assert caught.value.cure == "model.flash_attention=auto"


def test_one_whose_lse_is_in_other_units_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sinks are added to it, and the backward pass reads it."""
    interface = sys.modules["flash_attn.cute.interface"]
    right = interface._flash_attn_fwd

    def in_bits(*tensors: Tensor, **options: Any) -> tuple[Any, ...]:
        o, lse, *rest = right(*tensors, **options)
        return o, lse * math.log2(math.e), *rest

    monkeypatch.setattr(interface, "_flash_attn_fwd", in_bits)
    said = use(model(), CPU, None)
    assert said and "differs from torch's flash attention by 44.3%" in said and isinstance(in_use(), TorchFlash)


def test_one_that_does_not_compile_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("nvvm: no such target\nand a long tail")

    monkeypatch.setattr(sys.modules["flash_attn.cute.interface"], "_flash_attn_fwd", broken)
    said = use(model(), CPU, None)
    assert said == (
        "attention could run nearly twice as fast, by FlashAttention 4; flash-attn-4 4.0.0b36 does not run here: "
        "nvvm: no such target"
    )
    assert isinstance(in_use(), TorchFlash)


def test_where_it_is_not_installed_the_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "version_of", lambda _: None)
    said = use(model(), CPU, None)
    assert said and "flash-attn-4 is not installed: " in said and "pip install" in said and "hopper" in said
    with pytest.raises(StageError, match="flash-attn-4 is not installed"):
        use(model("model.flash_attention=fa4"), CPU, None)


def test_on_another_gpu_and_where_torchs_is_asked_for_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, kernels: list[Given]
) -> None:
    assert use(model("model.flash_attention=torch"), CPU, None) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert use(model(), CPU, None) is None
    assert isinstance(in_use(), TorchFlash) and kernels == []
    with pytest.raises(StageError, match="is no Hopper GPU"):
        use(model("model.flash_attention=fa4"), CPU, None)


def test_compiled_kernels_are_kept_in_the_users_cache_where_it_has_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    FlashAttention4()
    assert os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] == "1"
    assert os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"] == str(tmp_path / "flash-attn-4")
    (tmp_path / "a file").touch()
    for name in ("ENABLED", "DIR"):
        monkeypatch.setenv(f"FLASH_ATTENTION_CUTE_DSL_CACHE_{name}", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    FlashAttention4()
    assert os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] == ""


def test_a_training_that_asks_for_it_ends_where_there_is_no_gpu() -> None:
    asked = ["stage=plan", "compute=h100x2", "model.flash_attention=fa4"]
    with pytest.raises(StageError, match="takes a Hopper GPU"):
        build._attends_by_flash(resolve(asked), CPU)
    assert not build._attends_by_flash(resolve(asked[:2]), CPU)


def test_the_image_compiles_what_a_training_will_ask_for(monkeypatch: pytest.MonkeyPatch, kernels: list[Given]) -> None:
    """A kernel is found by the kinds of what the package is given; the image's script runs as it is."""
    interface = sys.modules["flash_attn.cute.interface"]
    compiled: list[tuple[Any, ...]] = []

    def forward(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, ...]:
        compiled.append(kinds(q, k, v, **options))
        return torch.empty_like(q), q.new_empty(q.shape[1], len(q), dtype=torch.float32)

    def backward(*tensors: Tensor, **options: Any) -> None:
        compiled.append(kinds(*tensors, **options))

    for name in ("FLASH_ATTENTION_ARCH", "CUTE_DSL_ARCH", "FLASH_ATTENTION_NUM_SMS"):
        monkeypatch.setenv(name, "")
    with monkeypatch.context() as context:
        context.setattr(interface, "_flash_attn_fwd", forward)
        context.setattr(interface, "_flash_attn_bwd", backward)
        runpy.run_path(str(REPOSITORY / "environment" / "train" / "compile_kernels.py"))
    for option, window in (("gpt-oss-20b", 128), ("llama-3.1-8b", None), ("mistral-7b", 4096), ("qwen3-8b", None),
                           ("qwen3-30b-a3b", None)):  # fmt: skip
        asked: list[tuple[Any, ...]] = []
        right = {name: getattr(interface, name) for name in ("_flash_attn_fwd", "_flash_attn_bwd")}
        with monkeypatch.context() as context:
            for name, function in right.items():
                context.setattr(interface, name, recording(function, asked))
            assert use(model(f"model={option}"), CPU, window) is None
        assert asked and not [one for one in asked if one not in compiled], option


def kinds(*tensors: Tensor, **options: Any) -> tuple[Any, ...]:
    """What the package compiles a kernel for, of a call; very short and very many documents have their own."""
    q, k = tensors[:2]
    sizes = len(q), len(options["cu_seqlens_q"]), options["max_seqlen_q"]
    fixed = {name: options.get(name) for name in ("causal", "deterministic", "return_lse")}
    given = {name for name, value in options.items() if value is not None}
    return *sizes, len(tensors), q.shape[1] // k.shape[1], q.shape[2], q.dtype, *fixed.items(), *sorted(given)


def recording(function: Any, into: list[tuple[Any, ...]]) -> Any:
    def recorded(*tensors: Tensor, **options: Any) -> Any:
        into.append(kinds(*tensors, **options))
        return function(*tensors, **options)

    return recorded
