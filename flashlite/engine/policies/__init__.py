"""Policies in the window's place: the rules that they keep, where one is put in, and how the engine runs it."""
