"""Entra ID: tokens for the service principals, and the check of those that come back."""

from __future__ import annotations

import base64
import json
import time
from typing import Any
from urllib.parse import parse_qs

from standin import names
from standin.web import Request, Response, Router, ServiceError, answer

LIFETIME_SECONDS = 3600
ARM_AUDIENCES = (f"https://{names.ARM}", "https://management.core.windows.net")
ML_AUDIENCE = "https://ml.azure.com"


def routes(router: Router) -> None:
    router.add("GET", "/common/discovery/instance", _instance)
    router.add("GET", "/{tenant}/discovery/instance", _instance)
    router.add("GET", "/{tenant}/v2.0/.well-known/openid-configuration", _configuration)
    router.add("POST", "/{tenant}/oauth2/v2.0/token", _token)


def issue(audience: str, client: str = names.CLIENT) -> str:
    """An unsigned token for one audience; neither the stand-in nor Azurite checks signatures."""
    now = int(time.time())
    claims = {
        "aud": audience,
        "iss": f"https://sts.windows.net/{names.TENANT}/",
        "tid": names.TENANT,
        "oid": client,
        "appid": client,
        "nbf": now - 60,
        "iat": now - 60,
        "exp": now + LIFETIME_SECONDS,
    }
    return ".".join([_segment({"alg": "none", "typ": "JWT"}), _segment(claims), "c2ln"])


def require(request: Request, *audiences: str) -> None:
    """Raises ServiceError: the request carries no token, or one for another audience."""
    if token_audience(request) not in audiences:
        challenge = f'Bearer authorization_uri="https://{names.LOGIN}/{names.TENANT}"'
        raise ServiceError(
            401, "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing or not valid.",
            {"WWW-Authenticate": challenge},
        )  # fmt: skip


def token_audience(request: Request) -> str | None:
    """The audience of a request's bearer token, if it has one that can be read."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    try:
        claims = token.split(".")[1] if scheme == "Bearer" else ""
        return json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["aud"].rstrip("/")
    except (IndexError, ValueError, KeyError):
        return None


def _segment(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _instance(request: Request, tenant: str = "") -> Response:
    return answer(
        {
            "tenant_discovery_endpoint": f"https://{names.LOGIN}/{names.TENANT}/v2.0/.well-known/openid-configuration",
            "api-version": "1.1",
            "metadata": [
                {"preferred_network": names.LOGIN, "preferred_cache": "login.windows.net", "aliases": [names.LOGIN]}
            ],
        }
    )


def _configuration(request: Request, tenant: str) -> Response:
    if tenant not in (names.TENANT, "organizations", "common"):
        return _refusal(400, "invalid_tenant", f"AADSTS90002: Tenant '{tenant}' not found.")
    base = f"https://{names.LOGIN}/{tenant}"
    return answer(
        {
            "issuer": f"{base}/v2.0",
            "token_endpoint": f"{base}/oauth2/v2.0/token",
            "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
            "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
        }
    )


def _token(request: Request, tenant: str) -> Response:
    form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
    client = form.get("client_id", "")
    if client not in names.SECRETS:
        return _refusal(400, "unauthorized_client", f"AADSTS700016: Application '{client}' was not found.")
    if form.get("client_secret") != names.SECRETS[client]:
        return _refusal(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.")
    audience = form["scope"].split(" ")[0].removesuffix("/.default").rstrip("/")
    lifetime = {"expires_in": LIFETIME_SECONDS, "ext_expires_in": LIFETIME_SECONDS}
    return answer({"token_type": "Bearer", **lifetime, "access_token": issue(audience, client)})


def _refusal(status: int, error: str, description: str) -> Response:
    return answer({"error": error, "error_description": description, "error_codes": []}, status)
