"""The texts of the pack's errors, warnings and summaries, as templates with {} in place of values.

    python -m scripts.message_texts        the templates without a Chinese text in web/messages/zh.json, as JSON

A page in Chinese translates by that file. `tests/nodes/pages/test_messages.py` names the texts that it lacks.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from scripts.console import say
from scripts.environment import ROOT

CHINESE = ROOT / "web" / "messages" / "zh.json"
# Their errors are for callers in Python, as are those that begin with a function's name: nodes check the same before.
FOR_CALLERS = ("analysis.py", "config.py", "models", "solvers", "flow/slerp.py", "checkpoints/keymaps.py")
FUNCTION = re.compile(r"[a-z]+_?[a-z]*: |TextWidths")
LONG_ENOUGH = 24  # characters of a part of a tooltip; a shorter text may be a part of a message, too
CJK = re.compile(r"[\u4e00-\u9fff]")
# Assigned names and keys whose texts are in locales/ or only searched.
NOT_MESSAGES = {"DESCRIPTION", "SEARCH_ALIASES", "OUTPUT_TOOLTIPS", "NODES", "tooltip"}


def templates() -> dict[str, str]:
    """Template -> where it is, as "file:line"; the first place of several."""
    definitions = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    shown_elsewhere = "\n".join(_texts(definitions))
    found: dict[str, str] = {}
    for path in [*sorted((ROOT / "nodes").rglob("*.py")), *_core_files()]:
        name = path.relative_to(ROOT).as_posix()
        for literal, line in _literals(ast.parse(path.read_text(encoding="utf-8"))):
            text = re.sub(r"\{[a-z_]+\}", "{}", literal)  # of str.format
            for_callers = name.startswith("mmdit_core/") and FUNCTION.match(text)
            shown = len(text) > LONG_ENOUGH and text.strip(" .") in shown_elsewhere
            if _is_message(text) and not for_callers and not shown:
                found.setdefault(text, f"{name}:{line}")
    return found


def _is_message(text: str) -> bool:
    """Whether a text is of several words, or a label such as "Steps: {}"."""
    if CJK.search(text) or re.search("%[sd]", text):
        return False
    several = len(re.findall(r"[A-Za-z]{2,}", text)) > 1 and " " in text.strip()
    return several or bool(re.match(r"[A-Z][a-z]+: ", text))


def _core_files() -> list[Path]:
    core = ROOT / "mmdit_core"
    skipped = tuple(str(core / name) for name in FOR_CALLERS)
    return [path for path in sorted(core.rglob("*.py")) if not str(path).startswith(skipped)]


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)


def _literals(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Every text in a syntax tree but docstrings, those of NOT_MESSAGES, patterns, lines of the log and split lists."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value, node.lineno
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values), node.lineno
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                yield from _literals(part.value)
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if not (isinstance(key, ast.Constant) and key.value in NOT_MESSAGES):
                yield from _literals(value)
    elif not _is_skipped(node):
        for child in ast.iter_child_nodes(node):
            yield from _literals(child)


def _is_skipped(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)  # a docstring
    if isinstance(node, ast.keyword):
        return node.arg in NOT_MESSAGES
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id in NOT_MESSAGES for target in node.targets)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        caller = ast.unparse(node.func.value)
        return caller in ("re", "logging") or (node.func.attr == "split" and caller[0] in "\"'")
    return False


def main() -> None:
    """Print the templates that have no Chinese text, with where they are."""
    file = json.loads(CHINESE.read_text(encoding="utf-8"))
    known = file["messages"] | file["words"]
    lacking = {text: place for text, place in templates().items() if text not in known}
    say(json.dumps(lacking, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
