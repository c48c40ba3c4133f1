"""What can be said of a model from its configuration alone: its modules, and where its work is."""
