"""A row's network: its modules, its weights on disk, and its exact counts."""
