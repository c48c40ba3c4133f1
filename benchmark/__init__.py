"""Honest latency and memory, side by side with the dense model."""
