"""The application of Azure ML's inference server, with OpenAI's paths beside ``/score``.

A managed endpoint leads no other path than ``/score`` to the server; that takes OpenAI's format just as well.
"""

from __future__ import annotations

from azureml_inference_server_http.server.entry import app

for path, method in (("/v1/chat/completions", "POST"), ("/v1/models", "GET")):
    app.add_url_rule(
        path,
        endpoint=f"main.{path.replace('/', '_')}",  # of the server's blueprint, whose preparations a request needs
        view_func=app.view_functions["main.handle_score"],
        methods=[method],
    )
