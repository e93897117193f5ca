"""What the local endpoint has beyond Azure ML's server: OpenAI's paths, a page to talk, and our own hosts alone.

A managed endpoint leads no other path than ``/score`` to the server; that takes OpenAI's format just as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from ftkit.serving import chat_page
from ftkit.serving.endpoint import paths
from ftkit.serving.endpoint.answers import error_body
from ftkit.serving.endpoint.refusals import Refused
from ftkit.serving.local_guard import OwnHostsAlone

ALL = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def add_paths(app: Flask, score: Callable[[], Any]) -> Flask:
    """Lead every path but the page's to the view of ``/score``, say what is not there, and refuse other hosts."""

    def view(**_path: str) -> Any:
        return score()

    endpoints = {"/<path:path>": "main.any_path", "/score": "main.any_method"}
    for rule, name in endpoints.items():  # named as of the server's blueprint, whose preparations a request needs
        app.add_url_rule(rule, endpoint=name, view_func=view, methods=ALL, provide_automatic_options=False)
    app.add_url_rule(paths.PAGE, endpoint="main.chat", view_func=chat_page.page, strict_slashes=False)
    app.register_error_handler(HTTPException, _say)
    app.wsgi_app = OwnHostsAlone.of(app.wsgi_app, os.environ)
    return app


def _say(error: HTTPException) -> tuple[Response, int]:
    refused = Refused(error.description or error.name, "", error.code or 500)
    try:
        paths.route(request.method, request.path)
    except Refused as better:
        refused = better if error.code in (404, 405) else refused
    return jsonify(error_body(refused)), refused.status
