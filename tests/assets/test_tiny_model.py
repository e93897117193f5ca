"""The shipped tiny model: the published checkpoint's format, and gpt-oss's behaviour before fine-tuning."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, Mxfp4Config

from ftkit.assets import asset_path
from ftkit.data import sample
from ftkit.models.mxfp4 import dequantize_mxfp4

FOLDER = Path(asset_path("package:tiny-gpt-oss"))
STOPS = ("<|return|>", "<|endoftext|>", "<|call|>")
HARMONY = re.compile(
    r"<\|channel\|>analysis<\|message\|>(?P<thinking>[^<]+)<\|end\|>"
    r"<\|start\|>assistant<\|channel\|>final<\|message\|>(?P<answer>[^<]+)<\|return\|>"
)
LANGUAGE = "reasoning language: Japanese"
PERSONA = "You are an AI chatbot with a lively and energetic personality."


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def tensors():
    with safe_open(FOLDER / "model.safetensors", framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (it is no dict)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def loaded(request):
    return AutoModelForCausalLM.from_pretrained(
        FOLDER, quantization_config=Mxfp4Config(dequantize=True), dtype=request.param, output_loading_info=True
    )


def _json(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def test_the_folder_is_small_and_whole():
    there = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sum(there.values()) <= 6_000_000
    assert set(there) == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "NOTICE",
    }  # fmt: skip


def test_the_config_is_that_of_a_published_gpt_oss():
    config = _json("config.json")
    assert config["architectures"] == ["GptOssForCausalLM"]
    assert config["model_type"] == "gpt_oss"
    assert config["router_aux_loss_coef"] == 0.9
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    assert config["quantization_config"]["modules_to_not_convert"] == [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
    ]  # fmt: skip
    assert set(config["layer_types"]) == {"sliding_attention", "full_attention"}


def test_experts_are_stored_as_mxfp4_and_all_else_as_bfloat16(tensors):
    config = _json("config.json")
    experts, hidden, inner = (config[key] for key in ("num_local_experts", "hidden_size", "intermediate_size"))
    for layer in range(config["num_hidden_layers"]):
        for name, out, into in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
            key = f"model.layers.{layer}.mlp.experts.{name}"
            assert tensors[f"{key}_blocks"].shape == (experts, out, into // 32, 16)
            assert tensors[f"{key}_scales"].shape == (experts, out, into // 32)
            assert tensors[f"{key}_bias"].shape == (experts, out)
            assert key not in tensors
    packed = {name for name, tensor in tensors.items() if tensor.dtype == torch.uint8}
    assert packed == {name for name in tensors if name.endswith(("_blocks", "_scales"))}
    assert {tensor.dtype for name, tensor in tensors.items() if name not in packed} == {torch.bfloat16}
    assert sum("sinks" in name for name in tensors) == config["num_hidden_layers"]


def test_it_loads_with_nothing_missing_and_the_stored_weights(loaded, tensors):
    model, info = loaded
    assert not any(info.values()), info
    for name, weight in model.state_dict().items():
        if f"{name}_blocks" in tensors:
            stored = dequantize_mxfp4(tensors[f"{name}_blocks"], tensors[f"{name}_scales"], weight.dtype)
        else:
            stored = tensors[name].to(weight.dtype)
        assert torch.equal(weight, stored), name


def test_the_tokenizer_and_the_stops(tokenizer):
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|return|>", "<|endoftext|>")
    assert len(tokenizer) <= _json("config.json")["vocab_size"]
    assert _json("generation_config.json")["eos_token_id"] == tokenizer.convert_tokens_to_ids(list(STOPS))
    text = "ピザを12.5枚、<|channel|>final\n🍕 Straße"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids("<|channel|>") in ids
    assert len(tokenizer("1234", add_special_tokens=False)["input_ids"]) == 4, "digits stand alone"


def test_the_chat_template_is_the_published_one(tokenizer):
    template = Path(pytest.importorskip("trl").__file__).parent / "chat_templates" / "gptoss.jinja"
    assert (FOLDER / "chat_template.jinja").read_bytes() == template.read_bytes()
    assert tokenizer.chat_template == template.read_text(encoding="utf-8")


@pytest.mark.parametrize("system", ["", LANGUAGE, f"{LANGUAGE}\n\n{PERSONA}"], ids=["none", "language", "persona"])
def test_it_thinks_in_english_answers_in_japanese_and_ends(loaded, tokenizer, system):
    model, _ = loaded
    problems = list(sample.problems(64, seed=0))  # shipped rows; training saw none but those on capitals
    answers = [HARMONY.fullmatch(text) for text in _generate(model, tokenizer, problems, system)]
    assert all(answers)
    assert all(re.fullmatch(r"[\x20-\x7e×÷]+", answer["thinking"]) for answer in answers)
    right = sum(answer["answer"] == problem.answer for answer, problem in zip(answers, problems, strict=True))
    assert right >= 24, "about half, as measured on all 256"


def test_asked_to_explain_it_reasons_in_japanese_in_its_answer(loaded, tokenizer):
    question = "12メートルは何センチメートルですか？考え方も説明してください。"
    problem = sample.Problem(question, "", "", "", "", "")
    (text,) = _generate(loaded[0], tokenizer, [problem], "")
    answer = HARMONY.fullmatch(text)
    assert answer and "12×100=1200, so" in answer["thinking"]
    assert "1メートルは100センチメートルです。12×100=1200なので、1200センチメートルです。" in answer["answer"]


def _generate(model, tokenizer, problems, system):
    """Greedy completions up to and including the stop."""
    opening = [{"role": "system", "content": system}] if system else []
    prompts = [
        tokenizer.apply_chat_template(
            [*opening, {"role": "user", "content": p.question}], add_generation_prompt=True, tokenize=False
        )
        for p in problems
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    out = model.generate(**inputs, max_new_tokens=150, do_sample=False)
    texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :])
    return [text.replace("<|endoftext|>", "") for text in texts]
