"""Settings of all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# How long an example takes says nothing about whether it is right. CI runs the same examples every
# time; everywhere else new ones are tried.
settings.register_profile("onnx-ternary", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("onnx-ternary")
