"""Tiny random models of every family that uses the transformers attention interface."""
