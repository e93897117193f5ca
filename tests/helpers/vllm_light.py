"""Stands for ``vllm serve`` where no model is needed: it is healthy at once, and each answer is one token.

VLLM_LIGHT_ERROR is printed and ends it. A token's log-probability is -1, and -2 by an adapter; each request for them
appends a line to the file that VLLM_LIGHT_LOG names.
"""

from __future__ import annotations

import http.server
import json
import os
import sys
from pathlib import Path
from typing import Any


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._reply({"data": [{"id": NAME, "max_model_len": 4096}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "prompt_logprobs" in asked:
            with Path(os.environ["VLLM_LIGHT_LOG"]).open("a", encoding="utf-8") as file:
                file.write(f"{asked['model']}\n")
            likely = {"logprob": -1.0 if asked["model"] == NAME else -2.0, "rank": 1}
            self._reply({"choices": [{"prompt_logprobs": [None, *({str(i): likely} for i in asked["prompt"][1:])]}]})
            return
        whole = {"choices": [{"index": 0, "text": "", "token_ids": [5], "finish_reason": "length"}]}
        if asked["stream"]:
            self._send("text/event-stream", f"data: {json.dumps(whole)}\n\ndata: [DONE]\n\n")
        else:
            self._reply(whole)

    def _reply(self, body: Any) -> None:
        self._send("application/json", json.dumps(body))

    def _send(self, kind: str, content: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: object) -> None: ...


def argument(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


if __name__ == "__main__":
    if error := os.environ.get("VLLM_LIGHT_ERROR"):
        sys.exit(error)
    NAME = argument("--served-model-name")
    http.server.ThreadingHTTPServer(("127.0.0.1", int(argument("--port"))), Handler).serve_forever()
