"""How often each message is parsed."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest


def count_parses(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often each message is parsed in Python; onnx.load and onnx_ir end in one of the two."""
    counted: Counter[bytes] = Counter()
    from_string, parse = onnx.ModelProto.FromString, onnx.ModelProto.ParseFromString

    def counting_from_string(content: bytes) -> onnx.ModelProto:
        counted[content] += 1
        return from_string(content)

    def counting_parse(self: onnx.ModelProto, content: bytes) -> int:
        counted[content] += 1
        return parse(self, content)

    monkeypatch.setattr(onnx.ModelProto, "FromString", staticmethod(counting_from_string))
    monkeypatch.setattr(onnx.ModelProto, "ParseFromString", counting_parse)
    return counted
