"""A disk that is full, told as that: each library that writes says it in an error of its own."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guardreasoner_guard.errors import GuardError

_SAID = re.compile(r"No space left|Disk quota exceeded|file write failed|unexpected pos \d+ vs|os error (?:28|122)\b")
"""In safetensors' and torch's errors, which carry no number."""


class DiskFull(GuardError):
    """A stage could not write; what was finished before is kept."""


def is_full_disk(error: Exception) -> bool:
    """Whether an error means that nothing more can be written."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or bool(_SAID.search(str(error)))


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Raises DiskFull in place of an error that means that nothing more can be written."""
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise DiskFull(
            f"The disk of {folder} is full. Free some room and run the same command again; finished stages are kept."
        ) from error
