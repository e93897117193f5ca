"""Stands for a vLLM container: health, and chat completions in OpenAI's format that say what they were asked.

python chat_container.py PORT MODEL_DIR GATE: it does not come up as long as the file GATE exists.
"""

from __future__ import annotations

import http.server
import json
import os
import sys
import time
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._reply(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions" or "max_tokens" not in asked:
            self._reply(400, {"error": {"message": "no chat completion"}})
            return
        roles = " ".join(message["role"] for message in asked["messages"])
        message = {"role": "assistant", "content": f"heard {roles}", "reasoning": os.environ["FTKIT_MODEL"]}
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        self._reply(200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage})

    def _reply(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    port, model, gate = sys.argv[1:]
    assert list(Path(model).rglob("config.json")), "no model"
    print("loading", model, flush=True)
    while Path(gate).exists():
        time.sleep(0.05)
    http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
