"""The processor: how many threads a model may run on, and what arithmetic there is."""

from __future__ import annotations

import os
import re
from pathlib import Path

_MOST_THREADS = 8
"""Left to itself the runtime takes one thread on some virtual machines; beyond some eight little is gained."""


def threads() -> int:
    """Threads a model runs on: the processors this process may use, as far as more of them gain anything."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _MOST_THREADS)


def has_vnni() -> bool:
    """Whether this processor has VNNI; x86 without it saturates 8-bit products at 16 bits unless told not to."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:  # only Linux says so; elsewhere the slower way is right everywhere
        return False
    return flags is not None and not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags[1].split())
