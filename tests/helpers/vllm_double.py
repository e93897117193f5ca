"""Stands for ``vllm serve`` with the tiny model on the CPU: health, and completions of token ids, whole or streamed.

Environment: VLLM_DOUBLE_ERROR is printed and ends it; VLLM_DOUBLE_LOADS is set and it is never ready;
VLLM_DOUBLE_DIES names a file that kills it, once: before it begins an answer if "early" is in it, else with the next
token. VLLM_DOUBLE_IGNORES leaves out the parts of adapters whose names it matches, as releases of vLLM have done.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import sys
import time
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from ftkit.serving.endpoint.batching import Job
from ftkit.serving.endpoint.limits import Limits
from ftkit.serving.endpoint.sampling import Chosen
from ftkit.serving.endpoint.service import Served

TAKEN = {
    *("model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stream", "return_token_ids"),
    *("skip_special_tokens", "top_k", "logprobs", "return_tokens_as_token_ids", "response_format"),
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        cards = [{"id": argument("--served-model-name", ""), "max_model_len": int(argument("--max-model-len", "4096"))}]
        body = {"object": "list", "data": cards} if self.path == "/v1/models" else {}
        self._reply(200 if self.path in ("/health", "/v1/models") else 404, body)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        die_if_told("early")
        if "prompt_logprobs" in asked:
            self._reply(200, {"choices": [{"prompt_logprobs": logprobs_of(asked["model"], asked["prompt"])}]})
            return
        assert self.path == "/v1/completions" and asked.keys() <= TAKEN, asked
        assert asked.get("return_token_ids") or "stream" not in asked, asked  # as scripts/bench_serve asks for counts
        if asked.get("response_format", {}).get("type") == "json_schema":
            self._reply(400, {"error": {"message": "the double writes no JSON", "code": 400}})
            return
        if len(asked["prompt"]) + asked["max_tokens"] > int(argument("--max-model-len", "4096")):
            self._reply(400, {"error": {"message": "This model's maximum context length is short", "code": 400}})
            return
        job = Job(
            asked["prompt"],
            asked["max_tokens"],
            time.monotonic() + 600,
            temperature=asked["temperature"],
            top_p=asked.get("top_p", 1.0),
            seed=asked.get("seed"),
            stepwise=True,
            likeliest=asked.get("logprobs"),
            adapter=adapter_named(asked["model"]),
        )
        served.engine.submit(job)
        if not asked.get("stream"):
            for _ in job.tokens():
                die_if_told("")
            choice = self._choice(job, 0, len(job.ids)) | self._ended(job)
            self._reply(200, {"choices": [choice], "usage": {"completion_tokens": len(job.ids)}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        with suppress(OSError):
            sent, most = 0, int(argument("--stream-interval", "1"))
            for number, _ in enumerate(job.tokens()):
                die_if_told("")
                if number == 0 or number + 1 - sent == most:
                    self._send(self._choice(job, sent, number + 1))
                    sent = number + 1
            self._send(self._choice(job, sent, len(job.ids)) | self._ended(job))
            self.wfile.write(b"data: [DONE]\n\n")
        job.cancel()
        self.close_connection = True

    @staticmethod
    def _ended(job: Job) -> dict[str, str]:
        return {"finish_reason": "stop" if job.ended == "stop" else "length"}

    @staticmethod
    def _choice(job: Job, begin: int, end: int) -> dict[str, Any]:
        likely = {"logprobs": as_vllm_writes(job.chosen[begin:end])} if job.chosen else {}
        return {"token_ids": job.ids[begin:end], "finish_reason": None} | likely

    def _send(self, choice: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps({"choices": [{"index": 0, "text": ""} | choice]}).encode() + b"\n\n")

    def _reply(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


def adapter_named(model: str) -> str:
    """vLLM knows the adapters of its command line alone."""
    words = sys.argv[sys.argv.index("--lora-modules") + 1 :] if "--enable-lora" in sys.argv else []
    known = [json.loads(word)["name"] for word in takewhile(lambda word: word.startswith("{"), words)]
    assert model in (argument("--served-model-name", ""), *known), model
    return model if model in known else ""


def logprobs_of(model: str, ids: list[int]) -> list[dict[str, Any] | None]:
    """None for the first token, the token and the likeliest other one for each of the others."""
    served.adapters.select(adapter_named(model))
    with torch.inference_mode():
        logits = served.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    served.adapters.select("")
    found: list[dict[str, Any] | None] = [None]
    for token, row in zip(ids[1:], logits, strict=False):
        likeliest = int(row.argmax())
        found.append({str(each): {"logprob": float(row[each]), "rank": 1} for each in (likeliest, token)})
    return found


def leave_out(pattern: str) -> None:
    with torch.no_grad():
        for name, matrix in served.model.named_parameters():
            if ".lora_B." in name and re.search(pattern, name):
                matrix.zero_()


def as_vllm_writes(chosen: list[Chosen]) -> dict[str, Any]:
    """With ``return_tokens_as_token_ids``; the chosen token comes first, whether it is among the likeliest or not."""
    likely = [{f"token_id:{token}": logprob for token, logprob in [each[:2], *each.likeliest]} for each in chosen]
    return {
        "tokens": [f"token_id:{each.token}" for each in chosen],
        "token_logprobs": [each.logprob for each in chosen],
        "top_logprobs": likely,
    }


def die_if_told(when: str) -> None:
    flag = os.environ.get("VLLM_DOUBLE_DIES")
    if flag and Path(flag).exists() and Path(flag).read_text() == when:
        Path(flag).unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def argument(name: str, otherwise: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else otherwise


if __name__ == "__main__":
    assert sys.argv[1] == "serve" and argument("--host", "") == "127.0.0.1"
    if error := os.environ.get("VLLM_DOUBLE_ERROR"):
        sys.exit(error)
    if os.environ.get("VLLM_DOUBLE_LOADS"):
        signal.pause()
    served = Served(Path(sys.argv[2]), Limits())
    if pattern := os.environ.get("VLLM_DOUBLE_IGNORES"):
        leave_out(pattern)
    print("loaded", flush=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(argument("--port", "0"))), Handler)
    server.serve_forever()
