"""A stand-in for Azure ML on loopback, driven by the unmodified azure-ai-ml and azure-identity.

Clients are led through a CONNECT proxy (HTTPS_PROXY) to a TLS server that answers under Azure's host names: Entra ID,
Azure Resource Manager, the data plane, scoring and key vault by itself, blob storage by Azurite. Jobs and endpoints
really run. Read ``cloud.py`` first.
"""

from standin.cloud import StandIn

__all__ = ["StandIn"]
