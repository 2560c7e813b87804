"""How long torch's threads stay awake while they wait for each other.

They meet at the end of every product of torch's, and by default each spins there for milliseconds until the last one
comes. Beside a busy process that one was put aside, and the others spin away the time that it needs. At the stages that
read between two products, they spin while the drive works, too.

What is said here counts only if it is said before torch is loaded, so it is for processes that flashlite starts.
"""

from __future__ import annotations

from collections.abc import Mapping

SPINS = "GOMP_SPINCOUNT"  # how often a thread looks before it sleeps, as GNU's OpenMP is told
BRIEFLY = "1000"  # some microseconds
CHOICES = (SPINS, "OMP_WAIT_POLICY")  # with a value for one of these, a user has chosen


def has_chosen(environment: Mapping[str, str]) -> bool:
    """Whether a user has chosen how long torch's threads wait. OpenMP takes an empty value for none."""
    return any(environment.get(name, "").strip() for name in CHOICES)


def waiting_briefly(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that streams, in which torch's threads soon sleep; what a user has chosen stays."""
    return {**environment} if has_chosen(environment) else {**environment, SPINS: BRIEFLY}
