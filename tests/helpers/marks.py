"""Marks of tests that not every machine can run."""

import sys

import pytest

needs_azures_server = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="Azure ML's inference server is for Python 3.12 and older"
)
