"""``ftkit_lora`` experts and ``ftkit_sinks`` attention, their plain versions, against eager transformers and PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.small_model import save_token_rows, small_config, small_run
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GptOssForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from ftkit.chat.serving_defaults import ServingDefaults
from ftkit.config.resolve import resolve
from ftkit.errors import StageError
from ftkit.export.merge import merge
from ftkit.models.experts import keep_low_rank
from ftkit.models.fused import availability
from ftkit.models.gpt_oss import attention as sink_attention
from ftkit.models.gpt_oss.document_masks import isolate_documents
from ftkit.models.loading import load_base
from ftkit.models.loss_head import add_loss_head
from ftkit.training.collator import Collator, JoiningCollator
from ftkit.training.dataset import training_rows
from ftkit.training.train import train

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def adapted(experts: str, *, rank: int = 4, targets: list[str] = EXPERTS, **changes: int) -> nn.Module:
    """A small random model with random adapters, the same for all implementations."""
    torch.manual_seed(0)
    model = GptOssForCausalLM._from_config(small_config(**changes), attn_implementation="eager", dtype=torch.float32)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj"], target_parameters=targets)
    model = get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    model.get_base_model().set_experts_implementation(experts)
    if experts == "ftkit_lora":
        keep_low_rank(model)
    return model


def outcome(model: nn.Module, index: Tensor) -> dict[str, Tensor]:
    """Output of the first layer's experts, and the gradient of everything that has one."""
    generator = torch.Generator().manual_seed(1)
    experts = model.base_model.model.model.layers[0].mlp.experts
    x, g = torch.randn(2, len(index), 32, generator=generator)
    weights = torch.rand(index.shape, generator=generator)
    x.requires_grad_(), weights.requires_grad_()
    y = experts(x, index, weights)
    y.backward(g)
    grads = {name: p.grad for name, p in experts.named_parameters() if p.requires_grad}
    return {"output": y.detach(), "x": x.grad, "weights": weights.grad} | grads


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(torch.tensor([[i % 4, (i + 1 + i // 4 % 3) % 4] for i in range(37)]), id="37 tokens"),
        pytest.param(torch.tensor([[3, 1]]), id="one token, two experts without any"),
        pytest.param(torch.tensor([[2, 0]]).expand(50, 2), id="all to the same experts"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rank", [1, 4, 8, 12, 64])
def test_experts_and_every_gradient_are_those_of_eager_and_peft(index: Tensor, rank: int) -> None:
    """Guard: the gradient through the routing weights, which a frozen router passes on."""
    expected, got = (outcome(adapted(name, rank=rank), index) for name in ("eager", "ftkit_lora"))
    assert expected.keys() == got.keys() and len(got) == 7
    for name, value in expected.items():
        assert torch.linalg.norm(got[name] - value) <= 1e-5 * torch.linalg.norm(value), name


@pytest.mark.parametrize("targets", [EXPERTS[:1], EXPERTS[1:], ["layers.1.mlp.experts.down_proj"]])
def test_experts_that_are_adapted_in_part(targets: list[str]) -> None:
    index = torch.tensor([[0, 1], [2, 3], [1, 3]])
    expected, got = (outcome(adapted(name, targets=targets), index) for name in ("eager", "ftkit_lora"))
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)


def test_adapters_that_are_switched_off_change_nothing() -> None:
    model, ids = adapted("ftkit_lora"), torch.arange(10, 20)[None]
    with model.disable_adapter():
        off = model(ids).logits
    assert not torch.allclose(off, model(ids).logits)
    model.get_base_model().set_experts_implementation("eager")
    torch.testing.assert_close(off, model.unload()(ids).logits, rtol=1e-4, atol=1e-4)


def joined(lengths: list[int], tmp_path: Path) -> tuple[dict, dict]:
    """The same rows joined end to end, and padded."""
    tokens = save_token_rows(tmp_path / "t.parquet", lengths, split=["train"] * len(lengths))
    config = small_run(tmp_path, "sft.packing=false", "sft.max_length=128")
    rows, _ = training_rows(tokens, config, vocab_size=288)
    examples = [rows[i] for i in range(len(rows))]
    return tuple(collator(examples) for collator in (JoiningCollator(0, multiple_of=16), Collator(0, packed=False)))


def test_documents_joined_end_to_end_give_the_loss_and_gradients_of_each_alone(tmp_path: Path) -> None:
    """Guard: the bounds of the documents, the window of 8, the sinks, and rows of the vocabulary without loss."""
    flat, padded = joined([11, 40, 1 + 1, 23], tmp_path)
    for batch in (flat, padded):
        batch.pop("tokens"), batch.pop("rows")
    assert flat["input_ids"].shape == (1, 80)
    reference, model = adapted("eager"), adapted("ftkit_lora")
    model.get_base_model().set_attn_implementation(sink_attention.NAME)
    isolate_documents(model)
    add_loss_head(model.get_base_model())
    logits = reference(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits
    expected = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), padded["labels"][:, 1:].flatten(), reduction="sum"
    )
    got = model(**flat)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    expected.backward(), got.backward()
    for (name, wanted), (_, found) in zip(reference.named_parameters(), model.named_parameters(), strict=True):
        if wanted.requires_grad:
            assert torch.linalg.norm(found.grad - wanted.grad) <= 1e-4 * torch.linalg.norm(wanted.grad), name


@pytest.mark.parametrize("packing", [True, False])
def test_training_gives_the_losses_of_eager_attention_and_peft(
    model_folder: Path, token_file: Path, tmp_path: Path, packing: bool
) -> None:
    said, losses = [], []
    for kind in (["ftkit_sinks", "ftkit_lora"], ["eager", "grouped_mm"]):
        config = small_run(
            model_folder, f"model.attn_implementation={kind[0]}", f"model.experts_implementation={kind[1]}",
            f"sft.packing={str(packing).lower()}",
        )  # fmt: skip
        out = tmp_path / kind[0]
        result = train(config, tokens=token_file, out=out, checkpoints=out / "checkpoints", say=said.append)
        losses.append((result.first_loss, result.last_loss, result.tokens))
        assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert said[0].endswith("not fused: there is no CUDA GPU")


def test_experts_kept_in_mxfp4_compute_as_the_unpacked_ones(mxfp4_folder: Path) -> None:
    config = small_run(mxfp4_folder, "model.weights=mxfp4", "model.experts_implementation=ftkit_lora")
    unpacked = config.model.model_copy(update={"weights": "dense"})
    packed, dense = (load_base(model, training=True) for model in (config.model, unpacked))
    experts = next(module for module in packed.modules() if isinstance(module, GptOssExperts))
    assert experts.gate_up_proj.untyped_storage().nbytes() == 4 and experts.gate_up_proj.shape == (4, 32, 64)
    ids = torch.arange(10, 30)[None]
    assert torch.equal(packed(ids).logits, dense(ids).logits)


def test_training_on_mxfp4_is_training_on_the_unpacked_weights(
    mxfp4_folder: Path, token_file: Path, tmp_path: Path
) -> None:
    losses = []
    for weights in ("mxfp4", "dense"):
        config = small_run(mxfp4_folder, f"model.weights={weights}", "model.experts_implementation=ftkit_lora")
        out = tmp_path / weights
        losses.append(train(config, tokens=token_file, out=out, checkpoints=out / "c", say=lambda _: None).last_loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("checkpointing", "runs"), [("true", 2), ("false", 1)])
def test_checkpointing_runs_each_layer_twice(
    model_folder: Path, token_file: Path, tmp_path: Path, checkpointing: str, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guard: the modules are in training mode, without which transformers does not checkpoint and says nothing.

    The adapter's effect is measured in the end, with modules that are not.
    """
    modes = []
    plain = GptOssExperts.forward
    monkeypatch.setattr(GptOssExperts, "forward", lambda *args: (modes.append(args[0].training), plain(*args))[1])
    config = small_run(model_folder, "sft.max_steps=2", f"sft.gradient_checkpointing={checkpointing}")
    train(config, tokens=token_file, out=tmp_path, checkpoints=tmp_path / "c", say=lambda _: None)
    assert sum(modes) == 2 * 2 * runs


def test_a_model_that_is_not_trained_generates(mxfp4_folder: Path) -> None:
    """Guard: for_inference; ftkit_sinks takes no padding and no cache."""
    ours = ("model.attn_implementation=ftkit_sinks", "model.experts_implementation=ftkit_lora", "model.weights=mxfp4")
    model = load_base(small_run(mxfp4_folder, *ours).model)
    ids = torch.tensor([[0, 0, 11, 12], [13, 14, 15, 16]])
    alone = model.generate(ids[:1, 2:], max_new_tokens=3, do_sample=False)[0, 2:]
    together = model.generate(ids, attention_mask=(ids > 0).long(), max_new_tokens=3, do_sample=False)[0, 4:]
    assert torch.equal(alone, together)


def test_what_was_trained_so_is_merged_as_any_other(mxfp4_folder: Path, token_file: Path, tmp_path: Path) -> None:
    ours = ("model.attn_implementation=ftkit_sinks", "model.experts_implementation=ftkit_lora", "model.weights=mxfp4")
    config = small_run(mxfp4_folder, *ours, "merge.format=fp32")
    train(config, tokens=token_file, out=tmp_path, checkpoints=tmp_path / "c", say=lambda _: None)
    result = merge(
        config, trained=tmp_path / "adapter", tokens=token_file, out=tmp_path / "merged", serving=ServingDefaults()
    )
    assert result.max_difference < 1e-3 * result.spread and result.mean_change > 0


def test_documents_without_their_bounds_are_refused(tmp_path: Path) -> None:
    """With position_ids alone they would see each other.

    Guards: the ValueErrors in document_masks._with_document_masks and in sink_attention.
    """
    flat, padded = joined([11, 23], tmp_path)
    model = adapted("ftkit_lora")
    model.get_base_model().set_attn_implementation(sink_attention.NAME)
    isolate_documents(model)
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        model(input_ids=flat["input_ids"], position_ids=flat["position_ids"])
    with pytest.raises(ValueError, match="no place for an attention_mask"):
        model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"])
    two_rows = torch.arange(32).view(2, 16)
    with pytest.raises(ValueError, match="in one row"):
        model(input_ids=two_rows, position_ids=two_rows % 16, cu_seq_lens_q=torch.tensor([0, 16, 32]), max_length_q=16)


def test_a_dense_checkpoint_cannot_be_kept_in_mxfp4(model_folder: Path) -> None:
    config = small_run(model_folder, "model.weights=mxfp4", "model.experts_implementation=ftkit_lora")
    with pytest.raises(StageError, match="experts are dense") as caught:
        load_base(config.model, training=True)
    assert caught.value.cure == "model.weights=dense"


@pytest.mark.parametrize(
    ("overrides", "capability", "triton", "why"),
    [
        ([], (9, 0), True, None),
        ([], (7, 5), True, "Tesla T4 is older than Ampere"),
        ([], (9, 0), False, "triton is not installed"),
        (["model.dtype=float32"], (9, 0), True, "it is not in bfloat16"),
        (["sft.bf16=false"], (9, 0), True, "it is not in bfloat16"),
        (["lora=none"], (9, 0), True, "all weights are trained (lora=none)"),
        (["sft.fsdp=true", "compute=h100x2"], (9, 0), True, "weights are sharded (sft.fsdp)"),
        (["lora=attention", "lora.lora_dropout=0.1"], (9, 0), True, "lora.lora_dropout is 0.1"),
        (["model.architecture.head_dim=48"], (9, 0), True, "of the model's shape"),
    ],
)
def test_a_gpu_that_cannot_run_fused_says_why(
    overrides: list[str], capability: tuple[int, int], triton: bool, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(availability, "find_spec", lambda name: object() if triton else None)
    assert availability.why_not_fused(resolve([*overrides, "stage=plan"]), torch.device("cuda")) == why
