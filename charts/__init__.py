"""Charts: how they look, and how they become files. They need the extra `plot`."""
