"""Disguises: whatever a text looks like, its other readings are few, and none is the text itself."""

from __future__ import annotations

from guardreasoner_guard.views import MOST, views


def holds(text: str) -> None:
    """What is true of every text."""
    found = views(text)
    assert len(found) <= MOST and len(set(found)) == len(found)
    assert all(view and view != text for view in found)
