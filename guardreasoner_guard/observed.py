"""Observers: whoever is told of every check, for logs, metrics and traces; what they do changes no verdict."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from .checks import Attempt
from .exchange import Exchange

logger = logging.getLogger(__name__)

Observer = Callable[[Exchange, Attempt], None]
"""Called with what was judged, and with its verdict or the error its caller is to see."""


def tell(observers: Sequence[Observer], exchanges: Sequence[Exchange], attempts: Sequence[Attempt]) -> None:
    """Tells every observer of every check; one that fails is logged and passed over."""
    for exchange, attempt in zip(exchanges, attempts, strict=True):
        for observer in observers:
            try:
                observer(exchange, attempt)
            except Exception as error:  # its message may quote what was judged, which is not logged
                logger.warning("an observer of the guard failed: %s in %r", type(error).__name__, observer)


async def atell(observers: Sequence[Observer], exchanges: Sequence[Exchange], attempts: Sequence[Attempt]) -> None:
    """`tell` beside an event loop: observers may write to disks and networks."""
    if observers:
        await asyncio.to_thread(tell, observers, exchanges, attempts)
