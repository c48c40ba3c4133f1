"""Calibration: the scores that a model makes on a person's own data -> a threshold table."""
