"""A stand-in for the model hub's API on loopback: as much of it as huggingface_hub's uploads ask for, without Xet."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPOSITORY = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"


@dataclass
class Hub:
    """What the stand-in holds.

    Attributes:
        url: what HF_ENDPOINT is.
        private: of repositories, ``models/owner/name``, whether they are.
        files: of repositories, content by path.
        fail_uploads: how many of the next uploads of large files break off.
        uploads: digests of large files that were sent.
        token: that requests have to carry.
    """

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    fail_uploads: int = 0
    uploads: list[str] = field(default_factory=list)
    token: str = "hf_right"


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def say(self, status: int, body: dict[str, object]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def do_GET(self) -> None:
            found = re.fullmatch(REPOSITORY + r"(/revision/main)?", self.path.partition("?")[0])
            key = f"{found['kind']}/{found['name']}" if found else ""
            if key not in hub.private:
                return self.say(404, {"error": "Repository not found"})
            files = [{"rfilename": path} for path in hub.files[key]]
            return self.say(200, {"id": key.partition("/")[2], "private": hub.private[key], "siblings": files})

        def do_PUT(self) -> None:
            content = self.body()
            if hub.fail_uploads:
                hub.fail_uploads -= 1
                return self.say(400, {"error": "broken off"})
            digest = self.path.rpartition("/")[2]
            assert hashlib.sha256(content).hexdigest() == digest
            hub.large[digest] = content
            hub.uploads.append(digest)
            return self.say(200, {})

        def do_POST(self) -> None:
            content, path = self.body(), self.path.partition("?")[0]
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.say(401, {"error": "Invalid username or password."})
            if path == "/api/repos/create":
                return self.create(json.loads(content))
            if path.endswith("/info/lfs/objects/batch"):
                return self.batch(json.loads(content))
            if path == "/api/validate-yaml":
                return self.say(200, {"errors": [], "warnings": []})
            found = re.fullmatch(REPOSITORY + r"/(?P<what>preupload|commit)/main", path)
            if not found:
                return self.say(404, {"error": f"nothing at {path}"})
            key = f"{found['kind']}/{found['name']}"
            if found["what"] == "preupload":
                given = [file["path"] for file in json.loads(content)["files"]]
                modes = {name: "lfs" if name.endswith((".safetensors", ".parquet")) else "regular" for name in given}
                return self.say(200, {"files": [self.mode(key, name, mode) for name, mode in modes.items()]})
            return self.commit(key, content)

        def mode(self, key: str, name: str, mode: str) -> dict[str, object]:
            return {"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": None}

        def create(self, wanted: dict[str, str]) -> None:
            key = f"{wanted.get('type', 'model')}s/{wanted['organization']}/{wanted['name']}"
            url = f"{hub.url}/{key.removeprefix('models/')}"
            if key in hub.private:
                return self.say(409, {"error": "You already created this repo", "url": url})
            hub.private[key], hub.files[key] = wanted.get("visibility") == "private", {}
            return self.say(200, {"url": url})

        def batch(self, wanted: dict[str, list[dict[str, object]]]) -> None:
            objects = []
            for each in wanted["objects"]:
                upload = {"upload": {"href": f"{hub.url}/put/{each['oid']}"}}
                objects.append({**each, **({} if each["oid"] in hub.large else {"actions": upload})})
            self.send_response(200)
            said = json.dumps({"transfer": "basic", "objects": objects}).encode()
            self.send_header("Content-Type", "application/vnd.git-lfs+json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def commit(self, key: str, content: bytes) -> None:
            for line in map(json.loads, content.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[key][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[key][value["path"]] = hub.large[value["oid"]]
            oid = "0" * 40
            self.say(200, {"commitUrl": f"{hub.url}/{key}/commit/{oid}", "commitOid": oid, "success": True})

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield hub
        server.shutdown()
