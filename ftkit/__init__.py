"""ftkit: fine-tune gpt-oss from one tree of YAML, from raw rows to a live endpoint."""

__version__ = "0.1.0"
