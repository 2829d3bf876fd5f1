"""Forks: what a child process must not go on with.

A lock may be held by a thread that the child does not have, a pool has no threads there, and of a connection
that two processes read one would get the other's answers.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Renewable(Protocol):
    """Something that owns locks, threads or connections."""

    def renew(self) -> None:
        """Makes them anew; called in a forked child before anything else runs there."""


_OWNERS: WeakSet[Renewable] = WeakSet()


def renew_in_children(owner: Renewable) -> None:
    """Has an object renewed in every process that is forked from this one, as long as it lives."""
    _OWNERS.add(owner)


def _renew_all() -> None:
    for owner in list(_OWNERS):
        owner.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
