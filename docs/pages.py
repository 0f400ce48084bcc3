"""Pages that stand at the root of the repository, for the site: `hooks` of mkdocs.yml."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LICENSE": "licence.md",
}
"""Name in the site by name in the repository."""
_LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add them, written for the folder that docs/ is in the site."""
    from mkdocs.structure.files import File

    for source, name in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source == "LICENSE":
            text = f"# Licence\n\n```text\n{text}```\n"
        files.append(File.generated(config, name, content=as_page(text)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Pages of docs/ that name files at the root, such as ../README.md."""
    return as_page(markdown) if "../" in markdown and "/" not in page.file.src_uri else markdown


def as_page(text: str) -> str:
    """A page's text with the links that hold in the site."""

    def link(match: re.Match[str]) -> str:
        target = match[2].removeprefix("../").removeprefix("docs/")
        return f"{match[1]}{PAGES.get(target, target)}{match[3] or ''})"

    return _LINK.sub(link, text)
