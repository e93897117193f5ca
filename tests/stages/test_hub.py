"""register pushes what the run has made to the model hub: privately, and on from where it broke off."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from helpers.command import Command, FinishedRun
from helpers.hub_double import Hub, running_hub

PARTS = "registration.hub_parts=[model,adapter,data]"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def register(copied_run: FinishedRun, hub: Hub) -> Callable[..., Command]:
    asked = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": hub.token}
    return lambda *arguments, **environment: copied_run.ftkit("stage=register", *arguments, **asked | environment)


@pytest.mark.slow
def test_a_push_that_broke_off_goes_on_and_is_private(register: Callable[..., Command], hub: Hub):
    hub.fail_uploads = 1
    broken = register("registration.hub=me/mine", PARTS)
    assert broken.status == 1 and "the upload broke off" in broken.err and "Traceback" not in broken.err
    done = register("registration.hub=me/mine", PARTS)
    assert done.status == 0 and f"on the hub: {hub.url}/me/mine, " in done.out, done
    assert hub.private == {"models/me/mine": True, "models/me/mine-adapter": True, "datasets/me/mine-data": True}
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= hub.files["models/me/mine"].keys()
    assert "adapter_model.safetensors" in hub.files["models/me/mine-adapter"]
    assert "Model Card for Model ID" not in hub.files["models/me/mine-adapter"]["README.md"].decode()
    assert "apto_reasoning_harmony.parquet" in hub.files["datasets/me/mine-data"]
    sent = len(hub.uploads)
    assert register("registration.hub=me/mine", PARTS, "force=true").status == 0
    assert len(hub.uploads) == sent, "what is there already is not sent again"


def test_nothing_is_pushed_where_others_see_it_or_without_leave(register: Callable[..., Command], hub: Hub):
    hub.private["models/me/open"], hub.files["models/me/open"] = False, {}
    public = register("registration.hub=me/open")
    assert public.status == 1 and "me/open is public on the hub" in public.err
    assert hub.files["models/me/open"] == {}
    stranger = register("registration.hub=me/mine", HF_TOKEN="hf_wrong")
    assert stranger.status == 1 and "hf auth login" in stranger.err and "hf_wrong" not in stranger.err
    offline = register("registration.hub=me/mine", HF_HUB_OFFLINE="1")
    assert offline.status == 1 and "unset HF_HUB_OFFLINE" in offline.err
