"""The machines that were measured, and one table of the targets that depend on the processor.

Every file `kernel_*.json` of a folder of results is a machine, measured by bench_kernel.py. The
table has a column for each, best class first, and for each class that no file belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pages import kernel, model
from pages.parts import table, verdict

Results = dict[str, Any]

SHAPES = ("2560x6912", "4096x4096")
OPEN = "open: no such machine was at hand"
# Processors are the same if these conditions are, as far as both files have them.
_IDENTITY = ("cpu", "processor", "L3 cache", "isa", "forced isa")


@dataclass(frozen=True, slots=True)
class ProcessorClass:
    """Processors that run the same kernels.

    Attributes:
        name: as tables show it.
        feature: what its processors have and those of later rows of `CLASSES` lack, as
            `onnx-ternary info` names it.
        targets: which number of `Case.needed` counts.
    """

    name: str
    feature: str
    targets: int


CLASSES = (
    ProcessorClass("AMX", "amx_int8", 0),
    ProcessorClass("AVX-512 VNNI", "avx512vnni", 1),
    ProcessorClass("AVX-VNNI", "avxvnni", 2),
    ProcessorClass("AVX2", "avx2", 2),
)


@dataclass(frozen=True, slots=True)
class Case:
    """A row of the table: ours against another.

    Attributes:
        needed: how many times faster on AMX, AVX-512 VNNI and AVX2; 0 where there is no target.
        rows: M of a layer, or 0 for `model_case`.
        model_case: of bench_model.py.
    """

    ours: str
    against: str
    needed: tuple[float, float, float]
    rows: int = 0
    model_case: str = ""

    @property
    def label(self) -> str:
        """How the table shows the case."""
        what = f"M = {self.rows}" if self.rows else f"{self.model_case}, layers of a 2B model"
        return f"{self.ours.split()[-1]}, {what}"


CASES = (
    Case(kernel.FLOAT, kernel.BASELINE, (12, 4.5, 2.5), 8),
    Case(kernel.FLOAT, kernel.DYNAMIC[0], (2, 1.2, 0), 8),
    Case(kernel.FLOAT, kernel.BASELINE, (6.5, 2.2, 1.2), 64),
    Case(kernel.FLOAT, kernel.NBITS[0], (4, 1.1, 0), 64),
    Case(kernel.FLOAT, kernel.DYNAMIC[0], (1.05, 0.6, 0), 64),
    Case(kernel.INT8, kernel.DYNAMIC[0], (3, 2.5, 0), 8),
    Case(kernel.INT8, kernel.DYNAMIC[0], (2.5, 1.2, 0), 64),
    Case(kernel.INT8, kernel.NBITS[0], (10, 2.8, 0), 64),
    Case(model.FLOAT, model.BASELINE, (4, 1.9, 0), model_case="prefill 128"),
    Case(model.INT8, model.NBITS, (6, 2.2, 0), model_case="prefill 128"),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What was measured on one machine.

    Attributes:
        layers: results of bench_kernel.py.
        models: results of bench_model.py; empty where there are none.
    """

    layers: Results
    models: Results = field(default_factory=dict)

    @property
    def conditions(self) -> dict[str, str]:
        """Of the layers."""
        found: dict[str, str] = self.layers["conditions"]
        return found

    @property
    def processor_class(self) -> ProcessorClass | None:
        """The first of `CLASSES` that it belongs to, by the instruction set forced, if one was."""
        able = {*self.conditions["isa"].split(", ")}
        if "forced isa" in self.conditions:
            able = {self.conditions["forced isa"]}
        return next((each for each in CLASSES if each.feature in able), None)

    @property
    def name(self) -> str:
        """The machine and its class, as tables show it."""
        name = str(self.layers.get("machine") or self.conditions["cpu"])
        parts = [name, self.processor_class.name if self.processor_class else ""]
        parts.append("forced" if "forced isa" in self.conditions else "")
        return ", ".join(filter(None, parts))


def load(folder: Path) -> list[Machine]:
    """The machines of a folder of results, best class first.

    Raises:
        SystemExit: if there is none.
    """

    def read(pattern: str) -> Iterator[Results]:
        for path in sorted(folder.glob(pattern)):
            yield json.loads(path.read_text(encoding="utf-8"))

    models = [*read("model*.json")]
    found = [
        Machine(layers, next((each for each in models if _is_same(layers, each)), {}))
        for layers in read("kernel_*.json")
    ]
    if not found:
        raise SystemExit(f"{folder} has no kernel_*.json; run bench_kernel.py --json")
    order = [*CLASSES, None]
    return sorted(found, key=lambda machine: order.index(machine.processor_class))


def _is_same(layers: Results, models: Results) -> bool:
    """Whether both are of one processor."""
    one = layers["conditions"]
    other = models.get("one thread", {}).get("conditions", {})
    shared = [key for key in _IDENTITY if key in one and key in other]
    return bool(shared) and all(one[key] == other[key] for key in shared)


def measured(machine: Machine, case: Case) -> float | None:
    """How many times faster, one thread, at worst of the shapes; None if a shape is missing."""
    if case.model_case:
        found = model.by_case(model.rows_of(machine.models, "one thread"))
        times = found.get((case.model_case, 1), {})
        if {case.ours, case.against} <= times.keys():
            return model.faster(times[case.ours], times[case.against])
        return None
    cases = kernel.by_case(machine.layers["rows"])
    ratios = []
    for shape in SHAPES:
        times = cases.get((shape, case.rows, 1), {})
        if not {case.ours, case.against} <= times.keys():
            return None
        ratios.append(kernel.ratio(times[case.ours], times[case.against]))
    return min(ratios)


def class_table(machines: Sequence[Machine]) -> str:
    """Every case with target and measurement of every machine, and of classes without one."""
    columns: list[tuple[str, ProcessorClass | None, Machine | None]] = []
    for each in CLASSES:
        own = [machine for machine in machines if machine.processor_class == each]
        columns += [(machine.name, each, machine) for machine in own]
        if not own:
            columns.append((f"{each.name} ({OPEN})", each, None))
    rest = [machine for machine in machines if machine.processor_class is None]
    columns += [(machine.name, None, machine) for machine in rest]
    rows = [
        [case.label, case.against, *(_cell(case, each, machine) for _, each, machine in columns)]
        for case in CASES
    ]
    return table(["case", "against", *(name for name, *_ in columns)], rows)


def _cell(case: Case, belongs: ProcessorClass | None, machine: Machine | None) -> str:
    """Target, measurement and whether it is reached."""
    needed = case.needed[belongs.targets] if belongs else 0
    target = f">= {needed:g}x: " if needed else ""
    found = measured(machine, case) if machine else None
    if found is None:
        return f"{target}{'not measured' if machine else 'open'}" if target else "-"
    reached = f", {verdict(found >= needed)}" if needed else ""
    return f"{target}{found:.2f}x{reached}"


def ends(machines: Sequence[Machine], has: Mapping[str, Any]) -> list[Machine]:
    """The best and the worst class that have such a row of results; one machine if only one has."""
    found = [
        machine
        for machine in machines
        if any(has.items() <= row.items() for row in machine.layers["rows"])
    ]
    return found if len(found) < 2 else [found[0], found[-1]]
