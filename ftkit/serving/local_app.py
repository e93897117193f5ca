"""Azure ML's inference server on this machine."""

from __future__ import annotations

from azureml_inference_server_http.server.entry import app as server  # pyright: ignore[reportMissingImports]  # not for Python 3.13

from ftkit.serving.local_paths import add_paths

app = add_paths(server, server.view_functions["main.handle_score"])
