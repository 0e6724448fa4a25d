"""What libraries log in processes that are this package's own: names show as `visible` has it."""

from __future__ import annotations

import logging

from onnx_ternary.errors import visible


class _VisibleRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 - logging's name
        return visible(super().getMessage())


def show_names_in_logs() -> None:
    """From now on, for every logger of the process."""
    logging.setLogRecordFactory(_VisibleRecord)
