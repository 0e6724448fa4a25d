"""The built library is compiled and linked so that a memory error ends the process."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from onnx_ternary.native.library_path import get_library_path

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads an ELF file"),
    pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf"),
]


def read(option: str) -> str:
    command = ["readelf", "--wide", option, get_library_path()]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_stack_is_not_executable() -> None:
    stack = re.search(r"GNU_STACK +(?:0x\w+ +){5}(.*?) +0x", read("--program-headers"))
    assert stack is not None
    assert stack[1].replace(" ", "") == "RW"


def test_addresses_are_bound_at_load_and_read_only_from_then_on() -> None:
    assert "GNU_RELRO" in read("--program-headers")
    assert re.search(r"\(FLAGS(_1)?\).*\b(BIND_NOW|NOW)\b", read("--dynamic"))


def test_code_checks_its_stack_and_the_sizes_it_knows() -> None:
    if re.search(r"\(NEEDED\).*lib(a|ub|t)san", read("--dynamic")):
        pytest.skip("sanitizers check instead")
    imported = set(re.findall(r" UND (\w+)", read("--dyn-syms")))
    assert "__stack_chk_fail" in imported  # -fstack-protector-strong
    assert "__fprintf_chk" in imported  # _FORTIFY_SOURCE
