"""A deploy one call of which fails: what served serves on, what is left is told, and the same command completes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from quick import Fault, Service
from quick.client import install
from quick.user import ENDPOINT, User

from ftkit.errors import StageError

pytestmark = pytest.mark.filterwarnings("ignore")
SEEN = 1
"""How many calls of a name go wrong, one in each deploy, beside the last one of that name."""


def begun(folder: Path, monkeypatch: pytest.MonkeyPatch, first: bool) -> tuple[Service, User]:
    service = Service()
    install(service, monkeypatch)
    ann = User(service, "ann", folder)
    if not first:
        ann.deploy("1")
    service.calls.clear()
    return service, ann


def calls(service: Service) -> list[tuple[str, int]]:
    """Calls by name, and how many of that name come before."""
    return [
        (name, before)
        for name, count in Counter(service.calls).items()
        for before in sorted({*range(min(SEEN, count)), count - 1})
    ]


@pytest.mark.parametrize("first", [True, False], ids=["first deploy", "roll-out"])
@pytest.mark.parametrize("kind", ["refused", "cut", "expired"])
def test_one_call_of_a_deploy_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, first: bool):
    service, ann = begun(tmp_path / "whole", monkeypatch, first)
    ann.deploy("2")
    made = calls(service)
    assert {"endpoints.get_keys", "deployments.begin_create_or_update", "blobs.lease"} <= {name for name, _ in made}
    for number, (name, before) in enumerate(made):
        service, ann = begun(tmp_path / str(number), monkeypatch, first)
        service.faults.append(fault := Fault(name, kind, after=before))
        case = f"{kind} at call {before + 1} of {name}"
        try:
            assert "serves served:2 with 100 %" in ann.deploy("2"), case
        except StageError as error:
            behind = sorted(name for _, name in service.deployments)
            told = any(words in error.what for words in ("left: ", "may still run", "has come into service"))
            assert told or behind == ([] if first else ["blue"]), f"{case}: {behind}, {error.what}"
            assert first or any(service.endpoints[ENDPOINT].traffic.get(name) for name in behind), case
        assert fault.met == 1, case
        service.faults.clear()
        assert "serves served:2 with 100 %" in ann.deploy("2"), case
        assert len(service.deployments) == 1, case
