"""Why the server of an endpoint did not start, or how its adapters came out, from its log.

The log is that of Azure ML's inference server, or of gunicorn alone.
"""

from __future__ import annotations

import re

_REASON = re.compile(r"^(?:[a-z_]\w*\.)*([A-Z]\w*(?:Error|Exception)): (.+)")
_FAILURE = re.compile(r" E \[\d+\] azmlinfsrv - |\[ERROR\] Exception in worker process")
"""The server's word that the script failed; a traceback about model versions before it means nothing."""
_COMPARED = re.compile(r"adapter \S+: (?:as trained:|not to be told from|not held against).*")


def compared(log: str) -> list[str]:
    """What ``score.py`` says of each adapter that its vLLM applies."""
    return list(dict.fromkeys(_COMPARED.findall(log)))


def reason(log: str) -> str:
    """The script's error, or else what gunicorn says of the worker; empty if the log has neither."""
    lines = log.splitlines()
    failed = next((i for i, line in enumerate(lines) if _FAILURE.search(line)), len(lines))
    errors = [found.groups() for line in lines[failed:] if (found := _REASON.match(line))]
    for name, message in reversed(errors):
        if not name.startswith("UserScript"):
            return message if name == "ModelError" else f"{name}: {message}"
    return "; ".join([line.partition("] ")[2] for line in lines if "[ERROR]" in line][-3:])
