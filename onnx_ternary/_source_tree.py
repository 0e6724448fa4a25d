"""What lets ``onnx_ternary.graph_passes`` be imported from a source tree.

Installed, graph_passes lies inside this package; in a source tree it lies beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

_here = Path(__file__).resolve().parent
if not (_here / "graph_passes").is_dir() and (_here.parent / "graph_passes/__init__.py").is_file():
    sys.modules["onnx_ternary"].__path__.append(str(_here.parent))
