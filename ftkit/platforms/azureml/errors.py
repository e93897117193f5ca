"""What Azure says when it says no, in the user's terms: what happened to which resource, and the cure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)

from ftkit.config.schema import Workspace as Settings
from ftkit.errors import StageError

SAME_COMMAND = "the same command goes on from here"
SIGN_IN = "az login, or AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET of a service principal"
ROLES = "the identity needs the role AzureML Data Scientist on the workspace; README, On Azure, lists them"
STORAGE_ROLES = (
    "the identity needs the role Storage Blob Data Contributor on the storage account {account}; if it has it, the "
    "account's firewall keeps this machine out"
)
VAULT_ROLES = "the identity needs the role Key Vault Secrets User on the vault {account}"
AUTOSCALE_ROLES = (
    "the identity needs Microsoft.Insights/autoscaleSettings/read, write and delete on the resource group, which "
    "Contributor has and AzureML Data Scientist has not; or deployment.autoscale.max_instances=null"
)


UPLOAD = re.compile(r"upload|Connection|timed out|reset|aborted|RemoteDisconnected|Max retries", re.IGNORECASE)
ENDPOINT_TAKEN = re.compile(r"already an endpoint with this name|endpoint name.*(taken|already exists)", re.IGNORECASE)


class Answer(NamedTuple):
    """What a code of the service means: a sentence that goes on after "cannot …: ", and the cure."""

    what: str
    cure: str


UNREGISTERED = "MissingSubscriptionRegistration"
IMAGE = Answer("the image could not be built", "stage=environment environment.wait=true shows why")
CODES = {
    "AuthorizationFailed": Answer("the identity is not allowed to", ROLES),
    "SubscriptionNotFound": Answer("there is no such subscription", "SUBSCRIPTION_ID=… az account list shows yours"),
    "ResourceGroupNotFound": Answer("there is no such resource group", "RESOURCE_GROUP=… az group list shows yours"),
    "OutOfQuota": Answer(
        "the quota is too small",
        "ask for more in Azure's portal (Quotas, Machine learning), or take another VM size (deployment.instance_type, "
        "compute.instance_type)",
    ),
    UNREGISTERED: Answer("the subscription does not use it yet", "az provider register --namespace Microsoft.Insights"),
    "TooManyRequests": Answer("the service is throttling", f"wait a minute; {SAME_COMMAND}"),
    "ImageBuildFailure": IMAGE,
    "no Environment Image available": IMAGE,
    "ResourceNotReady": Answer("the container did not get healthy", "see its log; deployment.startup_timeout_s=<more>"),
}
STATUSES = {
    401: Answer("the credential is not accepted", SIGN_IN),
    403: CODES["AuthorizationFailed"],
    404: Answer("it is not there", ""),
    408: Answer("the service took too long", SAME_COMMAND),
    409: Answer("something else is being done to it", f"wait until that has ended; {SAME_COMMAND}"),
    412: Answer("it has been changed at the same moment", f"wait a minute; {SAME_COMMAND}"),
    429: CODES["TooManyRequests"],
    500: Answer("the service failed", SAME_COMMAND),
    502: Answer("the service is not available", SAME_COMMAND),
    503: Answer("the service is not available, also after several tries", SAME_COMMAND),
    504: Answer("the service took too long", SAME_COMMAND),
}
NAME_TAKEN = Answer("", "deployment.endpoint_name=<another name>: a region has each name once, in whatever workspace")
BROKEN_OFF = Answer("the connection broke off while files were sent", SAME_COMMAND)
WORKSPACE_MISSING = Answer("there is no such workspace", "WORKSPACE_NAME=… az ml workspace list shows yours")


def translated(error: AzureError, to: str, resource: str, settings: Settings, log: Path) -> StageError:
    """The error in words; the service's whole answer is in ``log``.

    Args:
        to: what was tried, as an infinitive.
        resource: what it was tried on.
    """
    answer, said = _meaning(error), _said(error)
    request = _request_id(error)
    parts = (_place(settings), request and f"request {request}", f"all of it in {log}")
    where = ", ".join(part for part in parts if part)
    reason = f"{answer.what}: {said}" if answer.what and said else answer.what or said
    return StageError(f"cannot {to} {resource}: {reason}".rstrip(": "), where=where, cure=answer.cure)


def is_missing(error: BaseException | None) -> bool:
    """Whether the service says that a resource does not exist."""
    return isinstance(error, HttpResponseError) and error.status_code == 404


def is_forbidden(error: BaseException | None) -> bool:
    """Whether the identity is not allowed to do this."""
    return isinstance(error, HttpResponseError) and error.status_code == 403


def code_of(error: BaseException) -> str:
    """The service's own code behind an error; empty where it gives none."""
    cause = error.__cause__
    return str(cause.error.code or "") if isinstance(cause, HttpResponseError) and cause.error else ""


def _meaning(error: AzureError) -> Answer:
    if isinstance(error, ClientAuthenticationError):
        return Answer("no credential is accepted", SIGN_IN)
    if isinstance(error, ServiceRequestError):
        return Answer("Azure cannot be reached", f"is there a network, a proxy? {SAME_COMMAND}")
    if isinstance(error, ServiceResponseError):
        return Answer("the connection broke off", f"is there a proxy that ends it? {SAME_COMMAND}")
    if not isinstance(error, HttpResponseError):
        return BROKEN_OFF if UPLOAD.search(_plain(str(error))) else Answer("", SAME_COMMAND)
    if error.status_code == 403 and (roles := _roles(error)):
        return Answer("the identity is not allowed to", roles)
    code = error.error.code if error.error else ""
    text = error.message or ""
    if code == "ResourceNotFound" and "/workspaces/" in text and "was not found" in text:
        return WORKSPACE_MISSING
    if ENDPOINT_TAKEN.search(text):
        return NAME_TAKEN
    found = CODES.get(code or "") or next((CODES[name] for name in CODES if name in text), None)
    return found or STATUSES.get(error.status_code or 0, Answer("", ""))


def _roles(error: HttpResponseError) -> str:
    """The role that is missing, by what was touched; empty where it is the workspace."""
    request = getattr(error.response, "request", None)
    address = urlsplit(str(getattr(request, "url", "")))
    host = address.hostname or ""
    if "/providers/microsoft.insights/" in address.path.lower():
        return AUTOSCALE_ROLES
    account = host.partition(".")[0]
    if ".blob." in host or ".dfs." in host or ".file." in host:
        return STORAGE_ROLES.format(account=account)
    return VAULT_ROLES.format(account=account) if ".vault." in host else ""


def _said(error: AzureError) -> str:
    """The service's own sentence, without the JSON and the colours around it."""
    if isinstance(error, HttpResponseError) and error.error and error.error.message:
        text = error.error.message
    else:
        text = str(getattr(error, "message", None) or error)
    lines = [line.strip() for line in _plain(text).splitlines()]
    sentence = next((line for line in lines if re.search(r"\w{2}", line)), type(error).__name__)
    return sentence.removeprefix("Message: ")[:300]


def _plain(text: str) -> str:
    """A text without the escape codes that colour it."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def _request_id(error: AzureError) -> str:
    response = getattr(error, "response", None)
    headers = getattr(response, "headers", None) or {}
    return headers.get("x-ms-request-id") or headers.get("x-ms-client-request-id") or ""


def _place(settings: Settings) -> str:
    return f"workspace {settings.workspace_name} in {settings.resource_group}"
