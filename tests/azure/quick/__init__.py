"""The part of Azure that jobs and endpoints need, in this process, for sequences of commands too many for the stand-in.

ftkit's own code runs against it unchanged, down to the calls of azure-ai-ml's client; nothing is sent, and time is
counted instead of waited for. Commands of several users take turns at every question to the service.
"""

from quick.actors import Actor, Killed
from quick.service import Fault, Service

__all__ = ["Actor", "Fault", "Killed", "Service"]
