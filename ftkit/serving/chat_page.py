"""``GET /chat`` of the local endpoint: a page to talk with what it serves. It asks ``/v1`` as any other client does."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from flask import Response

from ftkit.chat.serving_defaults import ServingDefaults
from ftkit.html import rendered
from ftkit.serving.endpoint.loading import find_model


def page() -> Response:
    """The page, whole: it loads nothing, runs its own script alone and sends to this endpoint alone."""
    defaults = ServingDefaults.read(find_model(Path(os.environ["AZUREML_MODEL_DIR"])))
    nonce = secrets.token_urlsafe(16)
    told = {"home": "", "nonce": nonce, "name": defaults.name, "system": defaults.system}
    allowed = {
        "default-src": "'none'",
        "script-src": f"'nonce-{nonce}'",
        "style-src": "'unsafe-inline'",
        "connect-src": "'self'",
        **dict.fromkeys(("base-uri", "form-action", "frame-ancestors"), "'none'"),
    }
    return Response(
        rendered("serving", "chat.html.jinja", escape=True, **told),
        headers={
            "Content-Security-Policy": "; ".join(f"{what} {whom}" for what, whom in allowed.items()),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
        mimetype="text/html",
    )
