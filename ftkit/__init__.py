"""ftkit: fine-tune open reasoning models from one tree of YAML, from raw rows to a live endpoint."""

import os

__version__ = "0.1.0"

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported, by whichever library
