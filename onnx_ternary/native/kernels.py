"""Which kernels the library has, and choosing among them by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict, cast

from onnx_ternary.errors import LibraryError
from onnx_ternary.native.binding import call, library


class KernelEntry(TypedDict):
    """One kernel the library was built with."""

    name: str
    index_format: str
    activation: str
    isa: str
    supported: bool
    max_rows: int
    fixed_point: bool


class SelectionEntry(TypedDict):
    """The kernel used for a range of rows M.

    ``storage`` "1bit": for bits in blocks of 128 alone; ``scales`` "group": for layers with scales
    for groups of inputs alone.
    """

    index_format: str
    activation: str
    rows_min: int
    rows_max: int | None
    storage: str | None
    scales: str | None
    kernel: str


class CoreEntry(TypedDict):
    """The design of an ARM processor's cores, and what the selection leaves out there."""

    id: str
    name: str | None
    passed_over: list[str]


class ArmOnly(TypedDict, total=False):
    """What the list has on ARM processors only."""

    core: CoreEntry


class KernelList(ArmOnly):
    """What `onnx-ternary info` prints; custom_ops/dispatch/kernels_json.h."""

    cpu: list[str]
    kernels: list[KernelEntry]
    selection: list[SelectionEntry]


def list_kernels() -> KernelList:
    """The kernels this library has, and which one is selected for how many rows."""
    return cast(KernelList, json.loads(library().otn_kernels_json()))


def force_isa(name: str) -> None:
    """Make the whole process use one instruction set's kernels; "" lifts it.

    Raises:
        LibraryError: if there is no such instruction set or this processor lacks it.
    """
    call("otn_force_isa", LibraryError, name.encode())


def force_kernel(name: str) -> None:
    """Make the whole process use one kernel; "" lifts it.

    Raises:
        LibraryError: if there is no such kernel or this processor cannot run it.
    """
    call("otn_force_kernel", LibraryError, name.encode())


@contextmanager
def forced(isa: str = "", kernel: str = "") -> Iterator[None]:
    """Force an instruction set or a kernel within the block, for the whole process."""
    try:
        force_isa(isa)
        force_kernel(kernel)
        yield
    finally:
        force_kernel("")
        force_isa("")
