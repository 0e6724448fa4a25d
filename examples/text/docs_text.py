"""The text of the example: what every Python says about its language, `help("...")`'s topics."""

from __future__ import annotations

from pydoc_data.topics import topics

# Not trained on. Python's versions differ a little in what they say, hardly in these names.
HELD_OUT = ("assert", "bltin-null-object", "customization", "dict", "for", "numbers", "while")


def split() -> tuple[list[str], list[str]]:
    """The topics trained on, and those kept for measuring, each in the order of their names."""
    trained = [text for name, text in sorted(topics.items()) if name not in HELD_OUT]
    return trained, [topics[name] for name in HELD_OUT if name in topics]
