"""The places of docs/performance.md that show results of bench_kernel.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pages import kernel
from pages.machines import Machine, Results, class_table
from pages.parts import fill


def filled(text: str, machines: Sequence[Machine]) -> str:
    """docs/performance.md with the tables of these machines."""
    results = [machine.layers for machine in machines]
    # Set for AVX-512, for one and two threads and more shapes.
    wide = next(
        (each for each in machines if each.processor_class and each.processor_class.targets == 1),
        None,
    )
    memory = next((each["memory"] for each in results if each.get("memory")), [])
    places = {
        "conditions": _each(machines, kernel.conditions_text),
        "classes": class_table(machines),
        "targets": kernel.target_table(wide.layers) if wide else "Not measured.",
        "one thread": _each(machines, lambda found: kernel.full_table(found, 1)),
        "two threads": _each(machines, lambda found: kernel.full_table(found, 2)),
        "errors": kernel.error_table(results),
        "cold": _each(
            [machine for machine in machines if machine.layers.get("cold")], kernel.cold_table
        ),
        "memory": kernel.memory_table({"memory": memory}),
    }
    return fill(text, places)


def _each(machines: Sequence[Machine], made: Callable[[Results], str]) -> str:
    """A part for each machine, under its name."""
    return "\n\n".join(f"{machine.name}:\n\n{made(machine.layers)}" for machine in machines)
