"""Why the server of an endpoint did not start, from its log: Azure ML's inference server, or gunicorn alone."""

from __future__ import annotations

import re

_REASON = re.compile(r"^(?:[a-z_]\w*\.)*([A-Z]\w*(?:Error|Exception)): (.+)")
_FAILURE = re.compile(r" E \[\d+\] azmlinfsrv - |\[ERROR\] Exception in worker process")
"""The server's word that the script failed; a traceback about model versions before it means nothing."""


def reason(log: str) -> str:
    """The script's error, or else what gunicorn says of the worker; empty if the log has neither."""
    lines = log.splitlines()
    failed = next((i for i, line in enumerate(lines) if _FAILURE.search(line)), len(lines))
    errors = [found.groups() for line in lines[failed:] if (found := _REASON.match(line))]
    for name, message in reversed(errors):
        if not name.startswith("UserScript"):
            return message if name == "ModelError" else f"{name}: {message}"
    return "; ".join([line.partition("] ")[2] for line in lines if "[ERROR]" in line][-3:])
