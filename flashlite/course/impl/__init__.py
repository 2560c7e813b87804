"""Whose code `--impl` runs: which files take the places of modules, and which exercises in them are not solved."""
