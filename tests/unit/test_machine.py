"""The memory this process may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx_ternary._machine import available_memory


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   1000 kB\n"}, 1_024_000),
        (
            {
                "proc/meminfo": "MemAvailable:   1000 kB\n",
                "sys/fs/cgroup/memory.max": "500000\n",
                "sys/fs/cgroup/memory.current": "200000\n",
            },
            300_000,
        ),
        (
            {
                "proc/meminfo": "MemAvailable:   1000 kB\n",
                "sys/fs/cgroup/memory.max": "max\n",
                "sys/fs/cgroup/memory.current": "200000\n",
            },
            1_024_000,
        ),
        (
            {
                "proc/meminfo": "MemAvailable:   1000 kB\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "2000\n",
            },
            0,
        ),
    ],
    ids=["no limit", "cgroup v2", "cgroup v2 without a limit", "cgroup v1, used up"],
)
def test_available_memory(tmp_path: Path, content: dict[str, str], expected: int) -> None:
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory(tmp_path) == expected


def test_available_memory_of_this_machine() -> None:
    memory = available_memory()
    assert memory is None or memory > 1_000_000
