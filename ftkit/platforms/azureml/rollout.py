"""A new version behind an endpoint: beside the old one, asked before it gets traffic, and step by step into service.

Whatever ends it, Ctrl-C included, traffic goes back to what it was and what was made is deleted. Only what this run has
made is deleted or loses traffic, and another run's live version if the user agrees; what else is there stays.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ftkit.config.schema import Config
from ftkit.console import agreed
from ftkit.errors import Interrupted, StageError
from ftkit.platforms.azureml import autoscale, changes, endpoints, smoke
from ftkit.platforms.azureml import deployment_spec as container
from ftkit.platforms.azureml.capacity import Capacity, most_with_room, room
from ftkit.platforms.azureml.changes import Change, State
from ftkit.platforms.azureml.claims import Claim, claimed
from ftkit.platforms.azureml.container_log import compared_adapters, with_log
from ftkit.platforms.azureml.endpoints import SERVING, Deployed, Endpoint
from ftkit.platforms.azureml.errors import is_forbidden
from ftkit.platforms.azureml.ownership import ROLLOUT, Mark, whose
from ftkit.platforms.azureml.workspace import Workspace
from ftkit.platforms.base import Deployed as Outcome
from ftkit.platforms.base import Say

COLOURS = ("blue", "green", "red", "white", "black")
MACHINE_LIMIT_S = 3600.0
"""How long the image, the machine and the download of the model may take before the model begins to load."""
MIRROR_LOOK_S = 20.0


def deploy(workspace: Workspace, config: Config, model: Mapping[str, Any], say: Say) -> Outcome:
    """Serve a registered model version at ``deployment.endpoint_name``.

    Raises:
        StageError: it did not come into service; says what is left, if anything is.
        Interrupted: Ctrl-C, and something is left.
    """
    mark = Mark(config.run.name, workspace.owner, uuid.uuid4().hex[:12], config.tags)
    with claimed(workspace, config.deployment.endpoint_name, mark, say) as claim:
        return Rollout(workspace, config, model, say, mark, claim).run()


class Rollout:
    """One deployment on its way into service; arguments as of ``deploy``, and the claim on the endpoint."""

    def __init__(
        self, workspace: Workspace, config: Config, model: Mapping[str, Any], say: Say, mark: Mark, claim: Claim
    ):
        self.workspace, self.config, self.say = workspace, config, say
        self.mark, self.claim = mark, claim
        self.settings = config.deployment
        self.name = self.settings.endpoint_name
        self.reference = str(model["path"])
        self.container = container.of(config, model)
        self.count = self.container.count
        self.capacity = Capacity(workspace)

    def run(self) -> Outcome:
        found = endpoints.find(self.workspace, self.name)
        if found:
            endpoints.check_kept(found, self.settings)
            self._clean(found)
            found = self._find()
        old = found.serving if found else None
        if found and old and not self.config.force and self._serves_this(found, old):
            return self._outcome(found, old.name, self._scale(old.name), "already ")
        if found:
            self._check_room_in_traffic(found, old)
            self._may_replace(found, old)
        self._check_capacity(old)
        new = self._colour(found, autoscale.scaled_by_others(self.workspace, self.settings))
        container.ensure_environment(self.workspace, self.config, self.say)
        try:
            if found is None:
                endpoints.create(self.workspace, self.settings, self.mark, self.say)
            self._start(new)
            self._take_into_service(new, old)
        except BaseException as error:
            told = self._undone(error, new, old)
            if told is error:
                raise
            raise told from error
        if old:
            self._retire(old)
        scaled = self._scale(new)
        return self._outcome(self._last_look(new), new, scaled)

    # Before anything is made.

    def _clean(self, found: Endpoint) -> None:
        """Put right what a command of this run that was cut off has left: traffic goes back, and what it made goes."""
        serving = found.serving
        kept = serving.name if serving else ""
        left = [other for other in found.beside(kept) if self.mark.owns(other.tags)]
        names = [other.name for other in left]
        for other in found.beside(kept, *names):
            self.say(f"left as it is: {found.described_with_owner(other)}")
        if any(name in found.traffic for name in names):
            ours = found.share_of(kept, *names)
            others = {name: share for name, share in found.traffic.items() if name not in (kept, *names)}
            back = {kept: ours, **others} if kept else endpoints.without(found.traffic, names)
            self.say(f"traffic goes back to {kept or 'the others'}: an earlier deploy was cut off")
            endpoints.share(self.workspace, self.name, back, self.say, gone=names)
        elif any(name in found.mirrored for name in names):
            endpoints.share(self.workspace, self.name, found.traffic, self.say, gone=names)
        for other in left:
            self.say(f"deleting {other.name}, left by an earlier deploy ({other.model}, {other.state})")
            endpoints.delete_deployment(self.workspace, self.name, other.name, self.say)

    def _serves_this(self, found: Endpoint, old: Deployed) -> bool:
        same = old.state == "Succeeded" and old.tags.get(endpoints.DIGEST) == self.container.digest
        return same and self.mark.owns(old.tags) and old.name in found.traffic

    def _check_room_in_traffic(self, found: Endpoint, old: Deployed | None) -> None:
        """Raises StageError: all the traffic goes to deployments of others, which keep what they have."""
        if self.settings.mirror_traffic and found.mirrored:
            raise StageError(
                f"copies of the requests to {self.name} go to {', '.join(found.mirrored)} already, and Azure ML copies "
                "them to one deployment",
                where=f"endpoint {self.name}",
                cure="deployment.mirror_traffic=0, or az ml online-endpoint update --mirror-traffic",
            )
        if found.share_of(old.name if old else "") > 0:
            return
        has_all = "; ".join(found.described(other) for other in found.beside(old.name if old else ""))
        raise StageError(
            f"nothing of the traffic of {self.name} is left for a new version: {has_all}",
            where=f"endpoint {self.name}",
            cure="deployment.endpoint_name=<another name>, or give them less by az ml online-endpoint update --traffic",
        )

    def _may_replace(self, found: Endpoint, old: Deployed | None) -> None:
        """Raises StageError: the live version is another run's, and nobody has agreed to replacing it."""
        if old is None or self.mark.owns(old.tags):
            return
        live = f"{found.described(old)}, {self._cost(old)}; it is {whose(old.tags)}"
        self.say(live)
        if not agreed(
            f"Replace it by {self.container.model} of run {self.config.run.name}?",
            self.config,
            f"deploy would replace and delete a live version of another run: {live}",
            "yes=true replaces it; deployment.endpoint_name=<another name> leaves it",
        ):
            raise StageError("left as it is", cure="deployment.endpoint_name=<another name>")

    def _check_capacity(self, old: Deployed | None) -> None:
        """See that the region has the VM size, and its quota room for it.

        Where load has brought the version before to more instances, the new one starts with as many: it gets that load
        at once.
        """
        most = self.settings.autoscale.max_instances or self.count
        wanted = max(self.count, min(old.count, most)) if old else self.count
        try:
            size = self.capacity.size(self.container.size)
            room(self.capacity, size, self.count, reserve=True)
            if (reached := most_with_room(self.capacity, size, self.count, most)) < most:
                self.say(f"autoscale will reach {reached} of {most} instances: the quota has no room for more")
            self.count = min(wanted, reached)
        except StageError as error:
            if not is_forbidden(error.__cause__):
                raise
            self.say("VM sizes and quota are not checked first: that needs the role Reader on the subscription")
            self.count = wanted

    def _colour(self, found: Endpoint | None, scaled: Collection[str]) -> str:
        """A name that no deployment has, and no autoscale setting of others waits for."""
        first, taken = self.settings.deployment_name, {*(found.deployments if found else ()), *scaled}
        return next(name for name in (first, *COLOURS, self.mark.rollout) if name not in taken)

    # Into service.

    def _start(self, name: str) -> None:
        self.claim.check()
        endpoints.unscale(self.workspace, self.name, [name], self.say)
        self.say(
            f"{name}: starting {self.count} × {self.container.size} for {self.container.model}; image, "
            "model and start take 10 to 20 minutes with a large model"
        )
        doing = ("start the deployment", f"{self.name}/{name}")

        def look() -> State:
            found = endpoints.deployment_of(self.workspace, self.name, name)
            if found is None or not self.mark.made(found.tags):
                return State.NOT_BEGUN
            return endpoints.ENDED_STATES.get(found.state, State.UNDER_WAY)

        with container.deployment(self.container, self.name, name, self.reference, self.mark, self.count) as wanted:

            def begin() -> Any:
                with self.workspace.sending(*doing, self.say):
                    return self.workspace.client.online_deployments.begin_create_or_update(wanted)

            limit_s = MACHINE_LIMIT_S + self.settings.startup_timeout_s
            changes.make(self.workspace, Change(doing, begin, look, limit_s), self.say)

    def _take_into_service(self, new: str, old: Deployed | None) -> None:
        found = self._find()
        key = endpoints.credential(self.workspace, self.name)
        self._check(found, key, new)
        self.say(f"{new}: healthy, answers")
        for line in compared_adapters(self.workspace, self.name, new) if self.settings.adapters else ():
            self.say(f"{new}: {line}")
        kept = old.name if old else ""
        if old and self.settings.mirror_traffic:
            self._mirror(found, key, new)
        for percent in self.settings.rollout if old else [100]:
            self.claim.check()
            found = self._find()
            traffic = found.split(new, kept, percent)
            last = percent == 100
            tags = {SERVING: new, **replace(self.mark, rollout="").tags} if last else {}
            endpoints.share(
                self.workspace, self.name, traffic, self.say, tags=tags, gone=[new, *([kept] if last else [])]
            )
            self._check(found, key, new, may_be_busy=True)
            if not found.beside(new, kept):
                self._check(found, key, may_be_busy=True)
            self.say(f"{new}: {traffic[new]} % of the traffic, answers")

    def _mirror(self, found: Endpoint, key: str, new: str) -> None:
        """Have the new version answer copies of requests for a while, before it gets any of the traffic."""
        percent, minutes = self.settings.mirror_traffic, self.settings.mirror_minutes
        endpoints.share(self.workspace, self.name, found.traffic, self.say, copies={new: percent})
        self.say(f"{new}: gets copies of {percent} % of the requests for {minutes:g} min")
        until = changes.now() + minutes * 60
        while (left := until - changes.now()) > 0:
            self.claim.check()
            changes.pause(min(left, MIRROR_LOOK_S))
        self._check(found, key, new, may_be_busy=True)
        self.say(f"{new}: answers after {minutes:g} min of copies")

    def _check(self, found: Endpoint, key: str, deployment: str = "", *, may_be_busy: bool = False) -> None:
        smoke.check(self.config, found, key, self.say, deployment, may_be_busy=may_be_busy)

    def _retire(self, old: Deployed) -> None:
        """Delete the version that was replaced, unless it has been changed or given traffic meanwhile."""
        try:
            found = self._find()
            there = found.deployments.get(old.name)
            if there is None:
                return
            if there.tags.get(ROLLOUT) != old.tags.get(ROLLOUT) or old.name in found.traffic:
                self.say(f"left as it is, for it has been changed meanwhile: {found.described(there)}")
                return
            self.claim.check()
            endpoints.delete_deployment(self.workspace, self.name, old.name, self.say)
        except (StageError, KeyboardInterrupt) as error:
            left = f"the new version is in service, but {self._priced(old)} may still run without traffic"
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"interrupted; {left}\n  cure   the same command deletes it") from error
            raise StageError(f"{error.what}; {left}", where=error.where, cure="the same command deletes it") from error

    def _scale(self, name: str) -> str:
        """Have what is in service scale as configured.

        Returns:
            How it scales, for the user; empty where it does not.

        Raises:
            StageError, Interrupted: its rules are not as configured; it stays in service.
        """
        try:
            return autoscale.apply(self.workspace, self.settings, name, self.mark, self.say)
        except (StageError, KeyboardInterrupt) as error:
            left = f"{name} is in service, and its autoscale is not as configured"
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"interrupted; {left}\n  cure   the same command goes on") from error
            cure = error.cure or "the same command tries again"
            raise StageError(f"{error.what}; {left}", where=error.where, cure=cure) from error

    def _outcome(self, found: Endpoint, name: str, scaled: str, already: str = "") -> Outcome:
        """What the endpoint serves now.

        Args:
            scaled: how it scales; empty where it does not.

        Raises:
            StageError: no longer this.
        """
        uri, deployed = found.uri(self.container.server), found.deployments.get(name)
        others = [found.described(other) for other in found.beside(name)]
        if (
            deployed is None
            or deployed.tags.get(endpoints.DIGEST) != self.container.digest
            or name not in found.traffic
        ):
            raise StageError(
                f"{name} was in service, and has been changed by somebody else meanwhile: the endpoint {self.name} now "
                f"has {'; '.join(map(found.described, found.deployments.values())) or 'nothing behind it'}",
                where=f"endpoint {self.name}",
                cure="ask who else deploys to it; deployment.endpoint_name=<another name>",
            )
        beside = f"; beside it: {'; '.join(others)}" if others else ""
        summary = f"{name} {already}serves {self.container.model} with {found.traffic[name]} % of the traffic at {uri}"
        result = {
            "endpoint_name": self.name,
            "deployment_name": name,
            "model": self.container.model,
            "scoring_uri": uri,
            "digest": self.container.digest,
        }
        scale = f", {scaled}" if scaled else ""
        return Outcome(summary + scale + beside, result)

    # Back again.

    def _undone(self, error: BaseException, new: str, old: Deployed | None) -> BaseException:
        """Undo, and return the error with what is left, if anything is."""
        keep = self.settings.keep_failed and isinstance(error, StageError)
        if isinstance(error, KeyboardInterrupt):
            self.say("interrupted: putting things back, which may take minutes; Ctrl-C again leaves them as they are")
        try:
            if isinstance(error, StageError):
                error = with_log(self.workspace, error, self.name, new, self.say)
            self._undo(new, old, keep)
            left = self._left(new)
        except (StageError, KeyboardInterrupt) as second:
            why = second.what if isinstance(second, StageError) else "interrupted again"
            left = self._left(new)
            left = f"{left} ({why})" if left else ""
        if not left:
            return error
        cure = "the same command deletes it and tries again; stage=teardown deletes it"
        if isinstance(error, StageError):
            return StageError(f"{error.what}; left: {left}", where=error.where, cure=cure)
        return Interrupted(f"interrupted; left: {left}\n  cure   {cure}")

    def _undo(self, new: str, old: Deployed | None, keep: bool) -> None:
        """Take back what this command has made and changed, and nothing else."""
        found = endpoints.look_at(self.workspace, self.name)
        if found is None:
            return
        made = found.deployments.get(new)
        mine = made is not None and self.mark.made(made.tags)
        if mine and (new in found.traffic or new in found.mirrored or found.tags.get(SERVING) == new):
            self._give_back(found, new, found.deployments.get(old.name) if old else None)
        if keep:
            return
        if self.mark.made(found.tags) and not found.beside(new if mine else ""):
            endpoints.delete_endpoint(self.workspace, self.name, self.say)
            self.say(f"the endpoint {self.name} is deleted, as it was made a moment ago")
        elif mine:
            endpoints.delete_deployment(self.workspace, self.name, new, self.say)
            self.say(f"{new} is deleted again")

    def _give_back(self, found: Endpoint, new: str, old: Deployed | None) -> None:
        """The new version's part of the traffic goes to the old one, or where there is none to the others."""
        tags = {SERVING: old.name if old else ""}
        if old is None:
            endpoints.share(
                self.workspace, self.name, endpoints.without(found.traffic, [new]), self.say, tags=tags, gone=[new]
            )
            return
        back = found.split(old.name, new, 100)
        owner = {key: value for key, value in old.tags.items() if key in self.mark.tags and key != ROLLOUT}
        endpoints.share(self.workspace, self.name, back, self.say, tags={**tags, **owner}, gone=[new])
        rest = "all of it" if back[old.name] == 100 else f"{back[old.name]} % again"
        self.say(f"traffic is back: {old.name} has {rest}")

    def _left(self, new: str) -> str:
        """What this command has made that is still there, as far as can be told; empty for nothing."""
        try:
            found = endpoints.look_at(self.workspace, self.name)
        except StageError:
            return f"the endpoint {self.name} and its deployment {new}, at {self.container.size}'s price, perhaps"
        deployed = found.deployments.get(new) if found else None
        if found and deployed and self.mark.made(deployed.tags):
            return f"{self._priced(deployed)}, {found.traffic.get(new, 0)} % of the traffic"
        if found and self.mark.made(found.tags) and not found.deployments:
            return f"the endpoint {self.name}, which costs nothing by itself"
        return ""

    def _priced(self, deployed: Deployed) -> str:
        return f"{self.name}/{deployed.name} ({deployed.machines}, {self._cost(deployed)})"

    def _cost(self, deployed: Deployed) -> str:
        price = endpoints.usd_per_hour(self.capacity, [deployed])
        return f"{price:,.2f} USD an hour" if price is not None else "price not known"

    def _last_look(self, new: str) -> Endpoint:
        try:
            return self._find()
        except StageError as error:
            what = f"{new} has come into service, and what the endpoint serves now could not be seen: {error.what}"
            raise StageError(what, where=error.where, cure=error.cure) from error

    def _find(self) -> Endpoint:
        found = endpoints.find(self.workspace, self.name)
        if found is None:
            raise StageError(f"the endpoint {self.name} has been deleted meanwhile", cure="the same command")
        return found
