"""Write `docs/modules.md`: what each module of the pack holds, from the first paragraphs of their docstrings.

python -m scripts.list_modules
"""

from __future__ import annotations

import ast
from pathlib import Path

from scripts.environment import ROOT

TARGET = ROOT / "docs" / "modules.md"
HEAD = """# What each module holds

`python -m scripts.list_modules` writes this page from the docstrings. Imports run one way: `nodes/ -> mmdit_core/`.
`nodes/` also imports `attributes/`. Nothing in a package of the pack imports `evaluation/`.
"""


def first_paragraph(path: Path) -> str:
    """The first paragraph of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ")


def page() -> str:
    """The page's text: a section for each package, a line for each module in it."""
    sections = [HEAD]
    for room in ("mmdit_core", "nodes", "attributes", "evaluation"):
        for package in sorted(path.parent for path in (ROOT / room).rglob("__init__.py")):
            lines = [f"- `{path.name}`: {first_paragraph(path)}" for path in sorted(package.glob("[!_]*.py"))]
            name = package.relative_to(ROOT).as_posix()
            sections.append(f"## {name}/\n\n{first_paragraph(package / '__init__.py')}\n")
            sections.append("\n".join([*lines, ""]) if lines else "")
    return "\n".join(section for section in sections if section)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
