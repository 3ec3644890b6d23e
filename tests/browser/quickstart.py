"""What tests of the open quickstart workflow share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

WORKFLOW = Path(__file__).parents[2] / "workflows" / "quickstart.json"

OF = "const of = (type) => app.graph._nodes.find((node) => node.type === type);"
# Gives inputs of a node their values, as its widgets do.
SET = f"""([type, values]) => {{
    {OF}
    for (const [name, value] of Object.entries(values)) {{
        const widget = of(type).widgets.find((each) => each.name === name);
        widget.value = value;
        widget.callback?.(value);
    }}
}}"""


def fresh(shared, *, steps: int, timeout: int) -> Iterator:
    """The page with the quickstart as it ships, but for the steps; afterwards nothing of ours may have complained.

    Args: timeout in milliseconds, of whatever a test waits for.
    """
    shared.complaints.clear()
    shared.page.set_default_timeout(timeout)
    shared.load(WORKFLOW)
    shared.run(SET, ["FlowMatchingSampler", {"steps": steps}])
    yield shared
    assert shared.pack_complaints() == []
