"""Who decides which neurons stay in DRAM: the window, unless a file in this module's place defines a class Policy.

`--impl ref,contest=mine` puts exercises/contest_policy.py here; solutions/contest_policy.py is one more.
"""

from __future__ import annotations

from flashlite.engine.policies.rules import PolicyKind

Policy: PolicyKind | None = None  # called with a layer's number, its neurons and its capacity
