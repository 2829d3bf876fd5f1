"""Disguises: whatever a text looks like, its other readings are few and bounded, the same each time, none the text."""

from __future__ import annotations

from guardreasoner_guard.views import MOST, views


def holds(text: str) -> None:
    """What is true of every text."""
    found = views(text)
    assert len(found) <= MOST and len(set(found)) == len(found)
    assert all(view.strip() and view != text and len(view) <= 2 * len(text) + 8 for view in found)
    assert views(text) == found
