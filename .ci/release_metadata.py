"""Give README and the package's metadata the addresses of a release, before it is built.

Usage: python3 .ci/release_metadata.py OWNER/NAME TAG

Links of README lead to files of the checkout, which a page on a package index has not. What this
script changes is for the build alone and is never committed.
"""

import re
import sys
from pathlib import Path

_LINK = re.compile(r"(\]\(|src(?:set)?=\")(?!https?:|#|mailto:)([^)\s\"]+)(?=[)\"])")
_IMAGES = (".svg", ".png", ".gif")
_BEFORE = "[project.scripts]\n"


def absolute_links(text: str, repository: str, tag: str) -> str:
    """README's text with links to the files of one tag; pictures as their own bytes."""

    def absolute(match: re.Match[str]) -> str:
        path = match[2].removeprefix("./")
        kind = "raw" if path.partition("#")[0].endswith(_IMAGES) else "blob"
        return f"{match[1]}https://github.com/{repository}/{kind}/{tag}/{path}"

    return _LINK.sub(absolute, text)


def with_urls(text: str, repository: str, tag: str) -> str:
    """pyproject.toml's text with a table of project URLs, if it has none yet; else an error."""
    if "[project.urls]" in text or text.count(_BEFORE) != 1:
        raise SystemExit("pyproject.toml: expected one [project.scripts] and no [project.urls]")
    home = f"https://github.com/{repository}"
    urls = {
        "Repository": home,
        "Documentation": f"{home}/tree/{tag}/docs",
        "Changelog": f"{home}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{home}/issues",
    }
    table = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    return text.replace(_BEFORE, f"[project.urls]\n{table}\n{_BEFORE}")


def main(root: Path, repository: str, tag: str) -> None:
    """Change README.md and pyproject.toml below ``root``."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or not re.fullmatch(r"[\w./-]+", tag):
        raise SystemExit(f"expected OWNER/NAME and a tag, found {repository!r} and {tag!r}")
    for name, change in (("README.md", absolute_links), ("pyproject.toml", with_urls)):
        path = root / name
        changed = change(path.read_text(encoding="utf-8"), repository, tag)
        path.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(__file__).parents[1], *sys.argv[1:])
