"""Write `locales/en/` from the node definitions: ComfyUI shows these texts, and translations start from them.

    python -m scripts.make_locales

The other languages are written by hand; `tests/nodes/pages/test_locales.py` names the texts that they lack.
"""

from __future__ import annotations

import json
from typing import Any

from scripts.console import say
from scripts.environment import ROOT
from scripts.server import temporary_server

TARGET = ROOT / "locales" / "en"


def definitions(info: dict[str, Any]) -> dict[str, Any]:
    """The content of `nodeDefs.json` in English.

    Args: info, the pack's nodes in the form of `/object_info`.
    Returns: node -> display_name, description, inputs by name, outputs by position; each with a name and a tooltip.
    """
    return {
        name: {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": {given: _words(options.get("display_name", given), options) for given, options in _inputs(node)},
            "outputs": {
                str(index): {"name": output, "tooltip": tooltip}
                for index, (output, tooltip) in enumerate(
                    zip(node["output_name"], node["output_tooltips"], strict=True)
                )
            },
        }
        for name, node in info.items()
    }


def categories(info: dict[str, Any]) -> list[str]:
    """The names of the menu's levels, each translated by itself."""
    return sorted({part for node in info.values() for part in node["category"].split("/")})


def of_pack(info: dict[str, Any]) -> dict[str, Any]:
    """This pack's nodes among all nodes of a server."""
    return {name: node for name, node in info.items() if node["python_module"] == f"custom_nodes.{ROOT.name}"}


def _inputs(node: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    shown = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    return [(name, form[1] if len(form) > 1 else {}) for name, form in shown.items()]


def _words(name: str, options: dict[str, Any]) -> dict[str, str]:
    return {"name": name, "tooltip": options["tooltip"]}


def main() -> None:
    """Write the files."""
    with temporary_server("locales") as server:
        info = of_pack(server.client.object_info())
    files = {
        "nodeDefs.json": definitions(info),
        "main.json": {"nodeCategories": {part: part for part in categories(info)}},
    }
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, words in files.items():
        (TARGET / name).write_text(json.dumps(words, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        say(str(TARGET / name))


if __name__ == "__main__":
    main()
