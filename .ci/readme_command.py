"""Print a command of README.md by name: the code block after ``<!-- command: NAME -->``.

Usage: python3 .ci/readme_command.py NAME
"""

import re
import sys
from pathlib import Path


def readme_command(name: str) -> str:
    """The shell lines of the named command; more or fewer than one such command end the program."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    marker = rf"<!-- command: {re.escape(name)} -->"
    blocks = re.findall(rf"{marker}\s*```(?:bash|sh)\n(.*?)```", readme, re.DOTALL)
    if len(blocks) != 1:
        raise SystemExit(f"README.md has {len(blocks)} commands named {name!r}, expected 1")
    return str(blocks[0]).strip()


if __name__ == "__main__":
    print(readme_command(sys.argv[1]))
