"""Triton kernels of gpt-oss."""
