"""The workspace that all of Azure ML's work happens in: its client, its regions' figures, its errors in words."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cached_property
from io import TextIOWrapper
from pathlib import Path
from types import MappingProxyType
from typing import Any

from azure.ai.ml import MLClient
from azure.core.credentials import TokenCredential
from azure.core.exceptions import AzureError
from azure.identity import DefaultAzureCredential

from ftkit.config.schema import Workspace as Settings
from ftkit.console import counting
from ftkit.errors import StageError
from ftkit.file_locks import take
from ftkit.files import size_in_words
from ftkit.platforms.azureml import uploads
from ftkit.platforms.azureml.errors import translated
from ftkit.platforms.base import Say

ARM_SCOPE = "https://management.azure.com/.default"
LOG = "azure.log"
LIBRARIES = ("azure", "azure.ai.ml", "msal", "urllib3", "azureml", "py.warnings")


class Workspace:
    """One workspace, by the real SDK.

    Args:
        settings: subscription, resource group and name.
        log: file for what the SDK has to say, the service's whole answers included; never a secret.
        tags: the user's own, for all that is made in it.
    """

    def __init__(self, settings: Settings, log: Path, tags: Mapping[str, str] = MappingProxyType({})):
        self.settings, self.log, self.tags = settings, log, tags
        self.name = settings.workspace_name or ""
        self._handler = _LogFile(log, encoding="utf-8", delay=True)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))

    @cached_property
    def credential(self) -> TokenCredential:
        """Environment variables, managed identity, ``az login`` and the rest, in azure-identity's order."""
        return DefaultAzureCredential()

    @cached_property
    def client(self) -> MLClient:
        settings = self.settings
        return MLClient(
            self.credential,
            settings.subscription_id,
            settings.resource_group,
            settings.workspace_name,
            show_progress=True,  # without, the SDK overlooks a file that could not be sent, and waits for ever
        )

    @cached_property
    def described(self) -> Any:
        """The workspace itself: ``location``, ``id``, ``key_vault``, ``storage_account``.

        Raises:
            StageError: it does not exist, or the credential does not open it.
        """
        with self.asking("look at the workspace", self.name):
            return self.client.workspaces.get(self.name)

    def token(self, scope: str = ARM_SCOPE) -> str:
        """A bearer token, for the few calls that the SDK does not have."""
        with self.asking("sign in to", self.name):
            return self.credential.get_token(scope).token

    @property
    def owner(self) -> str:
        """Who the credential is: a user's name, or an application's id; empty where its token does not say."""
        names = ("upn", "preferred_username", "unique_name", "appid", "azp", "oid")
        return next((str(self._claims[name]) for name in names if self._claims.get(name)), "")

    @property
    def tenant(self) -> str:
        """The tenant that the credential belongs to."""
        return str(self._claims.get("tid", ""))

    @cached_property
    def _claims(self) -> dict[str, Any]:
        """What the credential's token says of itself; nothing that is trusted, only shown and written into tags."""
        try:
            claims = self.token().split(".")[1]
            return dict(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))))
        except (IndexError, ValueError, TypeError):
            return {}

    @contextmanager
    def asking(self, to: str, resource: str) -> Iterator[None]:
        """Around every call to the service: keeps the SDK's own words off the terminal, turns its errors into ours.

        Args:
            to: what is being done, as an infinitive: ``register the model``.
            resource: what it is done to: ``model tiny:3``.

        Raises:
            StageError: what happened, to which resource, what to do about it, and the request's id.
        """
        said = io.StringIO()
        loggers = [logging.getLogger(name) for name in LIBRARIES]
        before = [(logger.handlers, logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.handlers, logger.propagate = [self._handler], False
        logging.captureWarnings(True)
        try:
            with redirect_stdout(said), redirect_stderr(said):
                yield
        except AzureError as error:
            raise self._explained(error, to, resource) from error
        finally:
            logging.captureWarnings(False)
            for logger, (handlers, propagate) in zip(loggers, before, strict=True):
                logger.handlers, logger.propagate = handlers, propagate

    @contextmanager
    def sending(self, what: str, resource: str, say: Say) -> Iterator[None]:
        """As ``asking``, around calls that upload files: one at a time on this machine, and shown as they go.

        The SDK waits for ever when another process sends the same files at the same moment.
        """
        lock = self.log.parent.parent / ".sending"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as held:
            take(held, wait=True)
            with (
                counting("sent", say, shown=size_in_words) as more,
                uploads.told_of(more),
                self.asking(what, resource),
            ):
                yield

    def _explained(self, error: AzureError, to: str, resource: str) -> StageError:
        record = logging.LogRecord("ftkit", logging.ERROR, "", 0, "%s %s: %s", (to, resource, error), None)
        self._handler.emit(record)
        return translated(error, to, resource, self.settings, self.log)


class _LogFile(logging.FileHandler):
    """Makes its folder when there is something to say."""

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()
