"""Reports as JSON text. Names from models are data there: exact, but for absurd ones."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from onnx_ternary.errors import visible

# Longer than what any exporter writes; a name of megabytes would be in a report many times.
_MAX_STRING = 4_000
_SURROGATE = re.compile("[\ud800-\udfff]")
_COMMAND = re.compile(r"#(?=#\w*\[)")


def json_text(report: Mapping[str, Any]) -> str:
    """The text of a report, in ASCII: JSON escapes all other characters, and readers get them back.

    Strings of more than 4000 characters lose their middle, and surrogates, which stand for bytes of
    file names that are no UTF-8 and which most readers refuse, appear as in Python's source.
    """
    text = json.dumps(_plain(report), indent=2)
    # Two number signs and a bracket are a command to CI services that read what is printed.
    return _COMMAND.sub(r"\\u0023", text)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        if len(value) > _MAX_STRING:
            half = _MAX_STRING // 2
            value = f"{value[:half]}…{value[1 - half :]}"
        return _SURROGATE.sub(lambda found: visible(found[0]), value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
