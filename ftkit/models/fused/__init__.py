"""Fused layers for CUDA GPUs: what the layers of all families that have them are made of."""
