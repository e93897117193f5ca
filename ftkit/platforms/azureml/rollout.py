"""A new version behind an endpoint: beside the old one, asked before it gets traffic, and step by step into service.

Whatever ends it, Ctrl-C included, traffic goes back to what it was and what was made is deleted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ftkit.config.schema import Config
from ftkit.data.conversations import system_message
from ftkit.errors import Interrupted, StageError
from ftkit.platforms import Deployed as Outcome
from ftkit.platforms import Say
from ftkit.platforms.azureml import container, endpoints
from ftkit.platforms.azureml.capacity import Capacity, room
from ftkit.platforms.azureml.endpoints import Deployed, Endpoint
from ftkit.platforms.azureml.errors import is_forbidden
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.serving.client import NotAnswering, question, read_answer
from ftkit.serving.client import score as ask
from ftkit.serving.server_log import reason

COLOURS = ("blue", "green")
SMOKE_QUESTION = "2たす3はいくつですか？"
SMOKE_TOKENS = 64
CHECK_TRIES, CHECK_PAUSE_S = 5, 3.0
"""The gateway may take some seconds to know a new deployment."""
LOG_LINES = 30


def deploy(workspace: Workspace, config: Config, model: Mapping[str, Any], say: Say) -> Outcome:
    """Serve a registered model version at ``deployment.endpoint_name``.

    Raises:
        StageError: it did not come into service; says what is left, if anything is.
        Interrupted: Ctrl-C, and something is left.
    """
    return Rollout(workspace, config, model, say).run()


class Rollout:
    """One deployment on its way into service; arguments as of ``deploy``."""

    def __init__(self, workspace: Workspace, config: Config, model: Mapping[str, Any], say: Say):
        self.workspace, self.config, self.say = workspace, config, say
        self.settings = config.deployment
        self.name = self.settings.endpoint_name
        self.reference = str(model["path"])
        self.container = container.of(config, model)
        self.capacity = Capacity(workspace)

    def run(self) -> Outcome:
        found = endpoints.find(self.workspace, self.name)
        if found:
            self._check_auth_mode(found)
            self._clean(found)
        old = found.serving if found else None
        if found and old and not self.config.force and self._serves_this(found, old):
            return self._outcome(found, old.name, "already ")
        self._check_capacity()
        container.ensure_environment(self.workspace, self.config, self.say)
        new = self._colour(old)
        before = {old.name: 100} if old else {}
        try:
            if found is None:
                endpoints.create(self.workspace, self.settings, self.say)
            self._start(new)
            self._take_into_service(new, old)
        except BaseException as error:
            told = self._undone(error, new, before, existed=found is not None)
            if told is error:
                raise
            raise told from error
        if old:
            self._retire(old)
        return self._outcome(self._find(), new)

    # Before anything is made.

    def _check_auth_mode(self, found: Endpoint) -> None:
        if found.auth_mode != self.settings.auth_mode:
            raise StageError(
                f"the endpoint {self.name} takes {found.auth_mode}, and deployment.auth_mode is now "
                f"{self.settings.auth_mode}; an endpoint keeps the one that it was made with",
                cure=f"deployment.auth_mode={found.auth_mode}, or stage=teardown first",
            )

    def _clean(self, found: Endpoint) -> None:
        """Put right what a command that was cut off has left: the one in service gets all traffic, others go."""
        serving = found.serving
        wanted = {serving.name: 100} if serving else {}
        if found.traffic != wanted:
            self.say(f"traffic goes back to {serving.name if serving else 'nobody'}: an earlier deploy was cut off")
            endpoints.share(self.workspace, self.name, wanted, self.say)
        for other in found.deployments.values():
            if other != serving:
                self.say(f"deleting {other.name}, left by an earlier deploy ({other.model}, {other.state})")
                endpoints.delete_deployment(self.workspace, self.name, other.name, self.say)

    def _serves_this(self, found: Endpoint, old: Deployed) -> bool:
        return old.state == "Succeeded" and old.tags.get(endpoints.DIGEST) == self.container.digest

    def _check_capacity(self) -> None:
        """See that the region has the VM size, and its quota room for it."""
        try:
            size = self.capacity.size(self.container.size)
            room(self.capacity, size, self.container.count)
        except StageError as error:
            if not is_forbidden(error.__cause__):
                raise
            self.say("VM sizes and quota are not checked first: that needs the role Reader on the subscription")

    def _colour(self, old: Deployed | None) -> str:
        first = self.settings.deployment_name
        return next(name for name in (first, *COLOURS) if old is None or name != old.name)

    # Into service.

    def _start(self, name: str) -> None:
        self.say(
            f"{name}: starting {self.container.count} × {self.container.size} for {self.container.model}; image, "
            "model and start take 10 to 20 minutes with a large model"
        )
        doing = ("start the deployment", f"{self.name}/{name}")
        with container.deployment(self.container, self.name, name, self.reference) as wanted:

            def begin() -> Any:
                with self.workspace.sending(*doing):
                    return self.workspace.client.online_deployments.begin_create_or_update(wanted)

            endpoints.change(self.workspace, begin, doing, self.say)

    def _take_into_service(self, new: str, old: Deployed | None) -> None:
        found = self._find()
        key = endpoints.credential(self.workspace, self.name)
        self._check(found, key, new)
        self.say(f"{new}: healthy, answers")
        for percent in self.settings.rollout if old else [100]:
            traffic = {new: percent} | ({old.name: 100 - percent} if old and percent < 100 else {})
            in_service = new if percent == 100 else None
            endpoints.share(self.workspace, self.name, traffic, self.say, serving=in_service)
            self._check(found, key, new)
            self._check(found, key)
            self.say(f"{new}: {percent} % of the traffic, answers")

    def _check(self, found: Endpoint, key: str, deployment: str = "") -> None:
        """Ask a real question: a deployment directly, or whichever one the traffic leads to.

        Raises:
            StageError: no answer, or one that says nothing.
        """
        server = self.container.server
        uri, headers = found.uri(server), {"azureml-model-deployment": deployment} if deployment else {}
        payload = question(SMOKE_QUESTION, SMOKE_TOKENS, server, system_message(self.config.dataset))
        timeout_s = self.settings.request_timeout_ms / 1000 + 10
        try:
            body = self._patiently(lambda: ask(uri, payload, timeout_s=timeout_s, key=key, headers=headers))
            answer = read_answer(body, server, uri)
            if not (answer.output.strip() or answer.thinking.strip()):
                raise StageError("the answer is empty", where=uri)
        except StageError as error:
            raise StageError(
                f"{deployment or 'the endpoint'} was asked a question: {error.what}",
                where=error.where,
                cure="deployment.keep_failed=true leaves it to look at; the same command tries again",
            ) from error

    def _patiently(self, ask_once: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        for _ in range(CHECK_TRIES - 1):
            with suppress(NotAnswering):
                return ask_once()
            time.sleep(CHECK_PAUSE_S)
        return ask_once()

    def _retire(self, old: Deployed) -> None:
        try:
            endpoints.delete_deployment(self.workspace, self.name, old.name, self.say)
        except (StageError, KeyboardInterrupt) as error:
            left = f"the new version is in service, but {self._priced(old)} may still run without traffic"
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"interrupted; {left}\n  cure   the same command deletes it") from error
            raise StageError(f"{error.what}; {left}", where=error.where, cure="the same command deletes it") from error

    def _outcome(self, found: Endpoint, name: str, already: str = "") -> Outcome:
        uri = found.uri(self.container.server)
        summary = f"{name} {already}serves {self.container.model} with 100 % of the traffic at {uri}"
        result = {
            "endpoint_name": self.name,
            "deployment_name": name,
            "model": self.container.model,
            "scoring_uri": uri,
            "digest": self.container.digest,
        }
        return Outcome(summary, result)

    # Back again.

    def _undone(self, error: BaseException, new: str, before: dict[str, int], existed: bool) -> BaseException:
        """Undo, and return the error with what is left, if anything is."""
        keep = self.settings.keep_failed and isinstance(error, StageError)
        if isinstance(error, KeyboardInterrupt):
            self.say("interrupted: putting things back, which may take minutes; Ctrl-C again leaves them as they are")
        try:
            if isinstance(error, StageError):
                error = self._with_log(error, new)
            self._undo(new, before, existed, keep)
            left = self._left(new) if keep else ""
        except (StageError, KeyboardInterrupt) as second:
            why = second.what if isinstance(second, StageError) else "interrupted again"
            left = f"{self._left(new)} ({why})"
        if not left:
            return error
        cure = "the same command clears it away first; stage=teardown deletes the whole endpoint"
        if isinstance(error, StageError):
            cure = f"{error.cure}; {cure}" if error.cure else cure
            return StageError(f"{error.what}; left: {left}", where=error.where, cure=cure)
        return Interrupted(f"interrupted; left: {left}\n  cure   {cure}")

    def _undo(self, new: str, before: dict[str, int], existed: bool, keep: bool) -> None:
        found = endpoints.find(self.workspace, self.name)
        if found is None:
            return
        if existed and (found.traffic != before or found.tags.get(endpoints.SERVING) == new):
            (serving,) = before or {"": 100}
            endpoints.share(self.workspace, self.name, before, self.say, serving=serving)
            self.say(f"traffic is back: {serving or 'nobody'} has all of it")
        if keep:
            if not existed and found.traffic:
                endpoints.share(self.workspace, self.name, {}, self.say, serving="")
            return
        if not existed:
            endpoints.delete_endpoint(self.workspace, self.name, self.say)
            self.say(f"the endpoint {self.name} is deleted again")
        elif new in found.deployments:
            endpoints.delete_deployment(self.workspace, self.name, new, self.say)
            self.say(f"{new} is deleted again")

    def _with_log(self, error: StageError, name: str) -> StageError:
        """Print the end of the container's log, or what fetched model and code before it began; the error says why."""
        get = self.workspace.client.online_deployments.get_logs
        text = ""
        with suppress(StageError), self.workspace.asking("get the log of", f"{self.name}/{name}"):
            text = get(name, self.name, lines=LOG_LINES).strip("\n")
            text = text or get(name, self.name, lines=LOG_LINES, container_type="storage-initializer")
        for line in text.splitlines()[-LOG_LINES:]:
            self.say(f"{name}: {line}")
        if not (why := reason(text)):
            return error
        return StageError(f"{name} did not start: {why}", where=error.where, cure="mend that; the log is above")

    def _left(self, new: str) -> str:
        """What is still there and costs money, as far as can be told."""
        try:
            found = endpoints.find(self.workspace, self.name)
        except StageError:
            return f"the endpoint {self.name} and its deployment {new}, at {self.container.size}'s price, perhaps"
        if found is None or new not in found.deployments:
            return f"the endpoint {self.name}, which costs nothing by itself" if found else ""
        return f"{self._priced(found.deployments[new])}, {found.traffic.get(new, 0)} % of the traffic"

    def _priced(self, deployed: Deployed) -> str:
        price = endpoints.usd_per_hour(self.capacity, [deployed])
        cost = f"{price:,.2f} USD an hour" if price is not None else "price not known"
        return f"{self.name}/{deployed.name} ({deployed.machines}, {cost})"

    def _find(self) -> Endpoint:
        found = endpoints.find(self.workspace, self.name)
        if found is None:
            raise StageError(f"the endpoint {self.name} has been deleted meanwhile", cure="the same command")
        return found
