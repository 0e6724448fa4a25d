"""Small checkpoints, trained where a test asks for their layout."""

from __future__ import annotations

from pathlib import Path

STEPS = 80


class Trained:
    """Trained checkpoints by layout; a model is trained when one of its layouts is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, layout: str) -> Path:
        from make_checkpoint import LAYOUTS, write_checkpoints

        kind = next(kind for kind, layouts in LAYOUTS.items() if layout in layouts)
        if not (self._folder / layout).is_dir():
            write_checkpoints(self._folder, (kind,), STEPS)
        return self._folder / layout
