"""The stand-in for Azure: started once, asked afresh by each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from standin import StandIn


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """Azure on loopback; hand ``azure.environment`` to the processes that shall speak to it."""
    if not shutil.which("node"):
        pytest.skip("needs Node.js, for Azurite")
    stand_in = StandIn(tmp_path_factory.mktemp("azure"))
    try:
        yield stand_in
    finally:
        stand_in.stop()


@pytest.fixture(autouse=True)
def nothing_out_of_line(request: pytest.FixtureRequest) -> Iterator[None]:
    """Begins a test without faults and records; ends it by holding what was sent against the rules."""
    if "azure" not in request.fixturenames:
        yield
        return
    stand_in: StandIn = request.getfixturevalue("azure")
    stand_in.reset()
    yield
    stand_in.verify()
