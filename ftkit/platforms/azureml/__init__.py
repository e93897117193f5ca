"""An Azure ML workspace as a platform. Only modules of this package import Azure's SDK."""

from __future__ import annotations

import logging

for name in ("azure", "azure.ai.ml"):
    logging.getLogger(name).addHandler(logging.NullHandler())  # else importing it prints warnings about itself
