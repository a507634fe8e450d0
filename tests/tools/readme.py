"""README.md from nbs/index.ipynb: prose, code and text outputs, in GitHub's Markdown, by pandoc. Prints nothing; `--check` exits 1 when it is not up to date."""

import sys
from pathlib import Path

import nbformat
import pypandoc

ROOT = Path(__file__).resolve().parents[2]


def readme() -> str:
    "The text of README.md."
    parts = []
    for cell in nbformat.read(ROOT / "nbs" / "index.ipynb", 4).cells:
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
        text = "".join(o.get("text", "") for o in cell.get("outputs", []) if o.get("name") != "stderr")
        if text:
            parts.append("```text\n" + text.rstrip() + "\n```")
    return pypandoc.convert_text("\n\n".join(parts), "gfm", format="gfm", extra_args=["--wrap=none"]).replace("\r\n", "\n")


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(readme() != (ROOT / "README.md").read_text(encoding="utf-8"))
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
