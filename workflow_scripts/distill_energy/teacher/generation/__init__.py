"""Synthetic data: the teacher answers the training prompts. Engines: transformers, and vLLM in its own environment."""

from .stage import main

__all__ = ["main"]
