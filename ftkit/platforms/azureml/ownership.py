"""Whose a job, an endpoint or a deployment is: told by tags, so that nothing of others is touched."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

MADE_BY = {"made-by": "ftkit"}
RUN, OWNER, ROLLOUT = "ftkit-run", "ftkit-owner", "ftkit-rollout"
"""Tags: the run and the identity that made a resource, and the one command that did."""


@dataclass(frozen=True)
class Mark:
    """What a command leaves on all that it makes.

    Attributes:
        run: ``run.name``.
        owner: the identity, as the credential's token names it; empty where it names none.
        rollout: tells this command apart from every other.
        given: the user's own ``tags``.
    """

    run: str
    owner: str
    rollout: str = ""
    given: Mapping[str, str] = field(default_factory=dict)

    @property
    def tags(self) -> dict[str, str]:
        ours = {**MADE_BY, RUN: self.run, OWNER: self.owner} | ({ROLLOUT: self.rollout} if self.rollout else {})
        return {**self.given, **ours}

    def owns(self, tags: Mapping[str, str]) -> bool:
        """Whether a resource was made by a command of this run and this identity."""
        return made_by_ftkit(tags) and (tags.get(RUN), tags.get(OWNER, "")) == (self.run, self.owner)

    def made(self, tags: Mapping[str, str]) -> bool:
        """Whether a resource was made by this very command."""
        return bool(self.rollout) and tags.get(ROLLOUT) == self.rollout


def made_by_ftkit(tags: Mapping[str, str]) -> bool:
    return tags.items() >= MADE_BY.items()


def whose(tags: Mapping[str, str]) -> str:
    """Whose a resource is, for the user: ``run ja of nil@example.com``."""
    if not made_by_ftkit(tags):
        return "not made by ftkit"
    owner = tags.get(OWNER, "")
    return f"run {tags.get(RUN, 'unknown')}" + (f" of {owner}" if owner else "")


def run_key(run: str) -> str:
    """The key of a tag that all jobs of a run have: the service lists jobs by a tag's key, not by its value."""
    return f"{RUN}-{hashlib.sha256(run.encode()).hexdigest()[:16]}"
