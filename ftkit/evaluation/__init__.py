"""Asking a model questions and measuring its answers."""
