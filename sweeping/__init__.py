"""Sweeping a grid of methods and settings: its cells, their recipes, the run, what is written and printed."""
