"""Several adapters in one loaded model, asked by name: every answer is the one that the adapter gives alone."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from helpers.command import FinishedRun, run_ftkit
from openai import NotFoundError, OpenAI
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import Mxfp4Config

from ftkit.chat.messages import ModelError
from ftkit.data import sample
from ftkit.serving.endpoint.adapters import Adapters
from ftkit.serving.endpoint.answering import Answering
from ftkit.serving.endpoint.batching import Job, Scheduler
from ftkit.serving.endpoint.limits import Limits
from ftkit.serving.endpoint.refusals import Refused
from ftkit.serving.endpoint.requests import Request, parse_request
from ftkit.serving.endpoint.service import Served

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
NAMES = ("lora", "v1.2")
"""A part of PEFT's own prefix, and a name that no torch module can have."""


def base(folder: Path) -> Any:
    packed = Mxfp4Config(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=packed)


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with two random adapters, of attention and of experts, of different ranks."""
    copy = tmp_path_factory.mktemp("adapted") / "tiny"
    shutil.copytree(tiny, copy)
    for rank, name in enumerate(NAMES, start=2):
        torch.manual_seed(rank)
        lora = LoraConfig(r=rank, target_modules="all-linear", target_parameters=EXPERTS, init_lora_weights=False)
        get_peft_model(base(tiny), lora).save_pretrained(copy / "adapters" / name)
    return copy


@pytest.fixture(scope="module")
def served(folder: Path) -> Served:
    return Served(folder, Limits(batch_size=4))


def begin(served: Served, model: str, question: str = "1足す1は？", **more: Any) -> Answering:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 16,
        "temperature": 0,
    } | more
    return served.begin(parse_request(json.dumps(body), served.rules))


def generated_alone(folder: Path, name: str, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
    """By transformers' ``generate``, from a model that holds this adapter alone."""
    model = base(folder)
    if name in NAMES:
        model = PeftModel.from_pretrained(model, str(folder / "adapters" / name))
    with torch.inference_mode():
        return [
            model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=length, do_sample=False, pad_token_id=0)[
                0, len(prompt) :
            ].tolist()
            for prompt, length in zip(prompts, lengths, strict=True)
        ]


def test_each_answers_as_it_does_alone_whatever_is_asked_beside_it(served: Served, folder: Path):
    names = ["tiny", *NAMES, "lora", "tiny", "v1.2", *NAMES, "tiny"]
    problems = sample.problems(len(names))
    asked = [begin(served, name, problem.question) for name, problem in zip(names, problems, strict=True)]
    for answering in asked:
        answering.whole()
    for name in set(names):
        jobs = [answering.job for model, answering in zip(names, asked, strict=True) if model == name]
        alone = generated_alone(folder, name, [list(j.prompt) for j in jobs], [len(j.ids) for j in jobs])
        assert [job.ids for job in jobs] == alone, name
    assert len({tuple(begin(served, name).job.tokens()) for name in ("tiny", *NAMES)}) == 3


def test_a_long_answer_of_one_adapter_does_not_keep_another_waiting(served: Served):
    prompt = served.prompt_ids(Request([{"role": "user", "content": "1足す1は？"}]))
    scheduler = Scheduler(served.model, (), 2, 2, served.adapters.select)
    endless = Job(prompt, 10**9, time.monotonic() + 3600, stepwise=True, adapter="lora")
    scheduler.submit(endless)
    next(endless.tokens())
    short = Job(prompt, 3, time.monotonic() + 3600, adapter="v1.2")
    scheduler.submit(short)
    assert len(list(short.tokens())) == 3
    assert not endless.ended
    endless.cancel()
    list(endless.tokens())


def test_another_name_of_the_model_is_listed_as_such(folder: Path):
    listed = Adapters(folder.parent, ["tiny-01-pre", "tiny"]).listing()["data"]
    assert [(each["id"], each.get("root")) for each in listed] == [("tiny-01-pre", None), ("tiny", "tiny-01-pre")]


@pytest.mark.parametrize(("model", "says"), [("lara", "did you mean lora"), ("gpt-4", "there are tiny, lora, v1.2")])
def test_an_unknown_name_is_refused_with_the_nearest(served: Served, model: str, says: str):
    with pytest.raises(Refused, match=says) as refused:
        begin(served, model)
    assert (refused.value.status, refused.value.field) == (404, "model")


def cut(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def lose(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop(next(name for name in tensors if "q_proj.lora_B" in name))
    save_file(tensors, adapter / "adapter_model.safetensors")


def change(**changes: Any) -> Callable[[Path], None]:
    def changed(adapter: Path) -> None:
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return changed


BROKEN = {
    "truncated": (cut, "does not load"),
    "a tensor missing": (lose, "q_proj.lora_B"),
    "of another rank": (change(r=5), "size mismatch"),
    "no LoRA": (change(peft_type="IA3"), "a LORA is taken"),
    "with the model's name": (lambda adapter: adapter.rename(adapter.parent / "tiny"), "the name of the model itself"),
}


@pytest.mark.parametrize(("damage", "says"), BROKEN.values(), ids=BROKEN)
def test_an_adapter_that_does_not_fit_gives_one_clear_line(folder: Path, tmp_path: Path, damage, says: str):
    shutil.copytree(folder, tmp_path / "tiny")
    damage(tmp_path / "tiny" / "adapters" / "v1.2")
    with pytest.raises(ModelError, match=says) as error:
        Served(tmp_path / "tiny", Limits())
    assert str(tmp_path / "tiny" / "adapters") in str(error.value)
    assert "\n" not in str(error.value)


def asked_on_its_page(chromium: Any, address: str, question: str) -> dict[str, tuple[str, str]]:
    """Thinking and answer of each model, side by side, as the page at /chat shows them; then one asked alone."""
    page = chromium.new_page(viewport={"width": 1240, "height": 800})
    page.goto(address)
    page.wait_for_selector("#models label")
    page.evaluate("document.querySelector('#temperature').value = 0")
    page.fill("#question", question)
    page.click("#send")
    page.wait_for_function("() => document.querySelectorAll('article[aria-busy=false]').length === 2")
    cards = page.locator("article").all()
    boxes = [card.bounding_box() for card in cards]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    parts = [[card.locator(part).text_content() for part in ("h2", ".thinking", ".output")] for card in cards]
    page.get_by_label("tiny").uncheck()
    page.fill("#question", question)
    page.click("#send")
    page.wait_for_function("() => document.querySelectorAll('article[aria-busy=false]').length === 3")
    assert page.locator("article h2").all_inner_texts() == ["tiny", "ja", "ja"]
    page.close()
    return {name: (thinking, output) for name, thinking, output in parts}


def test_a_runs_adapter_is_deployed_beside_its_base(finished_run: FinishedRun, chromium, tmp_path: Path):
    """A run that was only trained, as where merge has refused to write what keeps too little of it."""
    shutil.copytree(finished_run.folder / "outputs", tmp_path / "outputs", ignore=shutil.ignore_patterns("endpoints"))
    for later in ("merge", "merged", "register", "deploy"):
        shutil.rmtree(tmp_path / "outputs/tiny" / later)
    options = ("experiment=tiny", "deployment.port=0", "deployment.adapters={ja: outputs/tiny}")
    typo = run_ftkit(*options[:2], "deployment.adapters={ja: outputs/tinny}", "stage=deploy", cwd=tmp_path)
    assert typo.status == 1 and "deployment.adapters.ja=outputs/tiny" in typo.err
    try:
        deployed = run_ftkit(*options, "stage=deploy,invoke", "invoke.model=ja", cwd=tmp_path)
        assert deployed.status == 0, deployed
        port = json.loads((tmp_path / "outputs/tiny/deploy/record.json").read_text())["result"]["port"]
        uri, client = f"http://127.0.0.1:{port}/v1", httpx.Client(trust_env=False)
        with OpenAI(base_url=uri, api_key="-", http_client=client) as ai:
            assert [model.id for model in ai.models.list()] == ["tiny", "ja"]
            chat = [{"role": "user", "content": "12メートルは何センチメートルですか？"}]
            chat.insert(0, {"role": "system", "content": "reasoning language: Japanese"})
            answers = {
                name: ai.chat.completions.create(model=name, messages=chat, temperature=0).choices[0].message
                for name in ("tiny", "ja")
            }
            assert "メートル" in answers["ja"].reasoning_content
            assert "One meter" in answers["tiny"].reasoning_content
            assert answers["ja"].reasoning_content in deployed.out
            with pytest.raises(NotFoundError, match="did you mean ja"):
                ai.chat.completions.create(model="jaa", messages=chat)
            assert asked_on_its_page(chromium, f"http://127.0.0.1:{port}/chat", chat[1]["content"]) == {
                name: (answer.reasoning_content, answer.content) for name, answer in answers.items()
            }
        again = run_ftkit(*options, "stage=deploy", "deployment.startup_timeout_s=700", cwd=tmp_path)
        assert "up to date" in again.out
    finally:
        run_ftkit("experiment=tiny", "stage=teardown", "yes=true", cwd=tmp_path)
