"""The processor, and how much of it and of memory may be used, without a library for it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

_num_processes = 1


def num_processors() -> int:
    """Processors this process may run on, less what it leaves to the others of its pool."""
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    return max(available // _num_processes, 1)


def session_threads() -> int:
    """Threads of an onnxruntime session: 0, its own choice, unless processes share the machine."""
    return num_processors() if _num_processes > 1 else 0


def share_processors(num_processes: int) -> None:
    """Say that so many processes, this one among them, work at the same time on this machine."""
    global _num_processes
    _num_processes = num_processes


def cpu_name(root: Path = Path("/")) -> str:
    """The processor's name as it calls itself, or its architecture.

    Args:
        root: where ``proc`` lies.
    """
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes a process may take: free or reclaimable, within the control group's limit.

    Args:
        root: where ``proc`` and ``sys`` lie.

    Returns:
        None where the system does not say.
    """
    limits = [_system_memory(root), _group_memory(root)]
    return min((limit for limit in limits if limit is not None), default=None)


def _system_memory(root: Path) -> int | None:
    try:
        text = (root / "proc/meminfo").read_text(encoding="ascii")
    except OSError:  # not Linux
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" in names:
            # How much of it is free is not known; half is a guess.
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _group_memory(root: Path) -> int | None:
    """What a container may still take (cgroup v2, then v1)."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        folder = root / "sys/fs/cgroup"
        try:
            most = (folder / limit).read_text(encoding="ascii").strip()
            taken = (folder / used).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if most.isdigit() and taken.isdigit():  # else it says "max"
            return max(int(most) - int(taken), 0)
    return None
