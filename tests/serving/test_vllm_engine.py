"""vLLM behind score.py, by a double of it on the CPU that answers with the tiny model."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from helpers.processes import belonging, doubles, gone
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import Mxfp4Config

from ftkit.chat.messages import ModelError
from ftkit.data import sample
from ftkit.errors import StageError
from ftkit.platforms.local import endpoint as local_endpoint
from ftkit.serving import client
from ftkit.serving.endpoint import vllm_server
from ftkit.serving.endpoint.adapter_effect import Effect
from ftkit.serving.endpoint.answers import body, events
from ftkit.serving.endpoint.limits import Limits
from ftkit.serving.endpoint.refusals import Refused
from ftkit.serving.endpoint.requests import parse_request
from ftkit.serving.endpoint.service import Served, choose_engine
from ftkit.serving.endpoint.vllm_engine import AT_ONCE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("vllm") is not None, reason="the real one would be started"),
]

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
QUESTIONS = [problem.question for problem in sample.problems(3)]


@pytest.fixture(scope="module")
def served(path: Path, model_dir: Path) -> Iterator[Served]:
    limits = Limits(concurrent_requests=2)
    several = ["--stream-interval", "3"]  # tokens at a time
    made = Served(model_dir / "merged", limits, engine="vllm", engine_args=["--max-model-len", "2000", *several])
    yield made
    made.engine.stop()


def ask(served: Served, prompt: str, **more: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "max_new_tokens": 60} | more
    return served.begin(parse_request(json.dumps(body), served.rules)).whole()


def until_ready(served: Served) -> dict[str, Any]:
    """The answer to a question that is asked again as long as the engine is being started."""
    while True:
        try:
            return ask(served, QUESTIONS[0])
        except Refused as error:
            assert error.status == 503
            time.sleep(0.05)


def test_answers_are_those_of_transformers(served: Served, model_dir: Path):
    alone = Served(model_dir / "merged", Limits())
    assert [ask(served, text) for text in QUESTIONS] == [ask(alone, text) for text in QUESTIONS]
    assert ask(served, QUESTIONS[0], max_new_tokens=3)["finish_reason"] == "length"
    long = AT_ONCE + 1  # which comes in pieces
    assert ask(served, QUESTIONS[0], max_new_tokens=long) == ask(alone, QUESTIONS[0], max_new_tokens=long)
    hot = {"temperature": 1.5, "seed": 3}
    assert ask(served, QUESTIONS[0], **hot) == ask(alone, QUESTIONS[0], **hot)


def test_its_own_longest_context_holds_though_the_models_is_longer(served: Served):
    """Guard: VllmEngine.context; vLLM would refuse what asks for more, a chat that names no length included."""
    for _ in range(3):
        with pytest.raises(Refused, match="beside max_new_tokens=2000 at most 0 are taken") as refused:
            ask(served, QUESTIONS[0], max_new_tokens=2000)
    assert (refused.value.status, served.engine.in_hand) == (400, 0)
    chat = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "temperature": 0}
    assert served.begin(parse_request(json.dumps(chat), served.rules, openai=True)).whole()["finish_reason"] == "stop"


def test_what_transformers_refuses_is_passed_on_and_places_are_counted(served: Served):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "1"}], "top_k": 5, "max_tokens": 4000}
    request = parse_request(json.dumps(body), served.rules)
    assert request.more == {"top_k": 5}
    long = [served.begin(request._replace(max_new_tokens=1500, stream=True)) for _ in range(2)]
    with pytest.raises(Refused, match="2 requests are being answered"):
        served.begin(request)
    for answering in long:
        answering.job.cancel()
        list(answering.pieces())
    assert served.engine.in_hand == 0


def test_several_answers_and_log_probabilities_are_those_of_transformers(served: Served, model_dir: Path):
    alone = Served(model_dir / "merged", Limits())
    asked = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "temperature": 1.5, "seed": 3, "max_tokens": 40}
    asked |= {"n": 2, "logprobs": True, "top_logprobs": 2}
    texts, tokens, logprobs = [], [], []
    for each in (served, alone):
        answerings = each.begin_all(parse_request(json.dumps(asked), each.rules, openai=True))
        whole = body(answerings[0].request, [answering.whole() for answering in answerings])
        texts.append([choice["message"]["content"] for choice in whole["choices"]])
        chosen = [token for answering in answerings for token in answering.job.chosen]
        tokens.append([(one.token, [token for token, _ in one.likeliest]) for one in chosen])
        logprobs.append([one.logprob for one in chosen] + [value for one in chosen for _, value in one.likeliest])
        shown = [entry["logprob"] for choice in whole["choices"] for entry in choice["logprobs"]["content"]]
        assert len(chosen) == 80 and shown == logprobs[-1][: len(shown)]
    assert texts[0] == texts[1] and tokens[0] == tokens[1]
    assert logprobs[0] == pytest.approx(logprobs[1], rel=1e-4, abs=1e-5), "batches of another size round otherwise"


def test_a_schema_is_handed_on_as_it_is_and_its_refusal_is_the_clients(served: Served):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True}}
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "1"}], "response_format": form}
    request = parse_request(json.dumps(asked), served.rules)
    assert request.more == {"response_format": form}
    with pytest.raises(Refused, match="the double writes no JSON") as refused:
        served.begin(request).whole()
    assert (refused.value.status, served.engine.in_hand) == (400, 0)


def test_when_it_is_killed_its_client_is_told_and_it_is_started_again(served: Served, path: Path):
    """What was to come whole can be asked again: nobody has seen any of it."""
    (path / "dies").touch()
    with pytest.raises(Refused, match="being started again; try again later") as refused:
        ask(served, QUESTIONS[0])
    assert (refused.value.status, served.engine.in_hand) == (503, 0)
    assert until_ready(served)["output"]


def test_when_it_is_killed_within_a_stream_that_ends_with_the_error(served: Served, path: Path):
    (path / "dies").touch()
    asked = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": 60, "stream": True}
    answerings = served.begin_all(parse_request(json.dumps(asked), served.rules, openai=True))
    first, *_, last = events(answerings, lambda: False)
    assert '"role": "assistant"' in first
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["type"], error["message"]) == ("server_error", "the model failed; the log says why")
    assert until_ready(served)["output"]


def test_what_it_had_not_begun_to_answer_can_be_asked_again(served: Served, path: Path):
    (path / "dies").write_text("early")
    with pytest.raises(Refused, match="being started again; try again later") as refused:
        ask(served, QUESTIONS[0])
    assert (refused.value.status, served.engine.in_hand) == (503, 0)
    assert until_ready(served)["output"]


FAILURES = {
    "out of memory": (
        "(EngineCore_DP0 pid=71) ERROR 11-29 10:00:01 [core.py:708] torch.OutOfMemoryError: CUDA out of memory. Tried "
        "to allocate 2.00 GiB\n(APIServer pid=1) Traceback (most recent call last):\n(APIServer pid=1) RuntimeError: "
        "Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    ),
    "less memory free than asked for": (
        "(EngineCore_DP0 pid=71) ValueError: Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than "
        "desired GPU memory utilization.\n(APIServer pid=1)     raise RuntimeError(\n(APIServer pid=1) RuntimeError: "
        "Engine core initialization failed. See root cause above.",
        "ValueError: Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than desired GPU memory "
        "utilization.",
    ),
    "an unknown model": (
        "(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "(APIServer pid=1)   Value error, Model architectures ['OddForCausalLM'] are not supported for now. "
        "[type=value_error, input_value=ArgsKwargs((), {})]\n(APIServer pid=1)     For further information",
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig Value error, Model "
        "architectures ['OddForCausalLM'] are not supported for now.",
    ),
    "a wrong argument": (
        "usage: vllm [-h] {serve}\nvllm: error: unrecognized arguments: --max-model-length",
        "vllm: error: unrecognized arguments: --max-model-length",
    ),
}


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(("said", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_start_that_fails_gives_its_reason_in_a_line(tiny: Path, monkeypatch: pytest.MonkeyPatch, said, reason):
    monkeypatch.setenv("VLLM_DOUBLE_ERROR", said)
    with pytest.raises(ModelError) as error:
        Served(tiny, Limits(), engine="vllm")
    assert str(error.value) == f"vLLM ended as it started (status 1): {reason}"


@pytest.mark.usefixtures("path")
def test_on_a_port_that_was_taken_meanwhile_it_starts_again_on_another(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    choose, taken = vllm_server._free_port, [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [held.getsockname()[1] for held in taken]
    monkeypatch.setattr(vllm_server, "_free_port", lambda: ports.pop() if ports else choose())
    try:
        made = Served(tiny, Limits(), engine="vllm")
        assert ask(made, QUESTIONS[0], max_new_tokens=2)["usage"]["completion_tokens"] == 2
        made.engine.stop()
    finally:
        for held in taken:
            held.close()


def test_behind_the_real_server_a_start_that_fails_or_takes_too_long_is_told_in_a_line_and_leaves_nothing(
    path: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def start(startup_timeout_s: int) -> StageError:
        with pytest.raises(StageError) as error:
            local_endpoint.start(
                **{"endpoint_name": "engine", "deployment_name": "blue", "model": "tiny:1", "port": 0},
                **{"model_dir": model_dir, "state_dir": tmp_path, "variables": {"FTKIT_ENGINE": "vllm"}},
                **{"startup_timeout_s": startup_timeout_s, "request_timeout_ms": 60_000, "max_concurrent_requests": 2},
                progress=lambda _line: None,
            )
        return error.value

    with monkeypatch.context() as patch:
        patch.setenv("VLLM_DOUBLE_ERROR", FAILURES["out of memory"][0])
        failed = start(300)
    assert (
        failed.what == f"the server did not start: vLLM ended as it started (status 1): {FAILURES['out of memory'][1]}"
    )
    monkeypatch.setenv("VLLM_DOUBLE_LOADS", "1")
    late = start(20)
    assert late.what == "not healthy after 20 s" and late.cure.startswith("deployment.startup_timeout_s=40")
    assert not belonging(tmp_path)


def test_the_engine_is_transformers_without_a_gpu_and_a_wrong_name_is_refused(path: Path):
    assert choose_engine("auto") == "transformers"
    with pytest.raises(ModelError, match="there are auto, transformers, vllm"):
        choose_engine("vlm")


@pytest.fixture(scope="module")
def adapted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model beside an adapter of attention and experts, with what transformers finds that it does."""
    folder = tmp_path_factory.mktemp("adapted") / "tiny"
    shutil.copytree(tiny, folder)
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", target_parameters=EXPERTS, init_lora_weights=False)
    packed = Mxfp4Config(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32, quantization_config=packed)
    model = get_peft_model(loaded, lora)
    matrices = {name: weight for name, weight in model.named_parameters() if ".lora_B." in name}
    with torch.no_grad():
        for name, matrix in matrices.items():
            matrix *= 0.5 if ".experts." in name else 0.05  # each changes as much
    model.save_pretrained(folder / "adapters" / "ja")
    rows = torch.randint(0, 500, (2, 40), generator=torch.Generator().manual_seed(0))
    experts = {name for name in matrices if ".experts." in name}
    left_out = {"": set(matrices), "whole": set(), "attention": experts, "experts": set(matrices) - experts}
    found = {}
    for part, names in left_out.items():
        kept = {name: matrices[name].detach().clone() for name in names}
        with torch.no_grad():
            for name in names:
                matrices[name].zero_()
            logprobs = model(input_ids=rows).logits.float().log_softmax(-1)
            found[part] = logprobs[:, :-1].gather(-1, rows[:, 1:, None])[..., 0].tolist()
            for name, values in kept.items():
                matrices[name].copy_(values)
    base = found.pop("")
    Effect(rows.tolist(), base, found).write(folder / "adapters" / "ja" / "effect.json")
    return folder


@pytest.mark.usefixtures("path")
def test_an_adapter_that_does_what_it_did_in_training_is_said_to_and_answers_by_its_name(adapted: Path):
    made, alone = Served(adapted, Limits(), engine="vllm"), Served(adapted, Limits())
    try:
        assert [note.partition(": ")[:2] for note in made.notes] == [("adapter ja", ": ")]
        assert made.notes[0].startswith("adapter ja: as trained: with it 78 log-probabilities of 2 rows change by ")
        for name in ("tiny", "ja"):
            chat = {"model": name, "messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": 30}
            request = parse_request(json.dumps(chat | {"temperature": 0}), made.rules)
            assert made.begin(request).whole() == alone.begin(request).whole()
    finally:
        made.engine.stop()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    ("ignored", "said"),
    [
        ("lora", "leaves all of it out: with it 78 log-probabilities of 2 rows change by 0.000 nats"),
        (r"\.experts\.", "leaves experts out: "),
        ("self_attn", "leaves attention out: "),
        (r"experts\.base_layer", "applies it otherwise than training: "),
    ],
)
def test_an_engine_that_leaves_out_a_part_of_an_adapter_is_refused(
    adapted: Path, monkeypatch: pytest.MonkeyPatch, ignored: str, said: str
):
    monkeypatch.setenv("VLLM_DOUBLE_IGNORES", ignored)
    with pytest.raises(ModelError) as error:
        Served(adapted, Limits(), engine="vllm")
    assert str(error.value).startswith(f"adapter ja: the engine {said}")
    assert "deployment.engine=transformers" in str(error.value)


def test_behind_the_real_server_it_is_asked_and_goes_with_it(path: Path, model_dir: Path, tmp_path: Path):
    endpoint = local_endpoint.start(
        **{"endpoint_name": "engine", "deployment_name": "blue", "model": "tiny:1", "port": 0},
        **{"model_dir": model_dir, "state_dir": tmp_path, "variables": {"FTKIT_ENGINE": "vllm"}},
        **{"startup_timeout_s": 300, "request_timeout_ms": 60_000, "max_concurrent_requests": 2},
        progress=lambda _line: None,
    )
    try:
        (engine,) = doubles(psutil.Process(endpoint.pid))
        answer = client.score(endpoint.scoring_uri, {"prompt": QUESTIONS[0], "max_new_tokens": 3}, timeout_s=60)
        assert answer["usage"]["completion_tokens"] == 3
        engine.kill()
        for status in (503, 200):  # while it is being started again, and then
            until = time.monotonic() + 300
            while httpx.get(endpoint.health_uri, timeout=60, trust_env=False).status_code != status:
                assert time.monotonic() < until
        (engine,) = doubles(psutil.Process(endpoint.pid))
        psutil.Process(engine.ppid()).kill()  # the worker, which gunicorn replaces
        gone(engine)
    finally:
        family = doubles(psutil.Process(endpoint.pid))
        local_endpoint.stop(endpoint)
    for each in family:
        gone(each)


def test_it_ends_with_its_owner(served: Served):
    """Last: the others need it."""
    (engine,) = doubles(psutil.Process())
    served.engine.stop()
    gone(engine)
