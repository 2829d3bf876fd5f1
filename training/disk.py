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


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Raises DiskFull in place of an error that means that nothing more can be written."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and not _SAID.search(str(error)):
            raise
        raise DiskFull(
            f"The disk of {folder} is full. Free some room and run the same command again; finished stages are kept."
        ) from error
