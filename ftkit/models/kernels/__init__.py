"""Triton kernels of fused layers."""
