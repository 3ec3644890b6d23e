"""A block strip, used by mouse and keyboard; and graphs with strips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.graph_images import empty_tensors

SMALL = "mmdit-small.safetensors"  # 8 blocks
# Headers only: 24 blocks, 19 + 38 blocks, 30 blocks after 2 + 2 refiners, 28 blocks, 60 blocks.
MEDIUM, FLUX, Z_IMAGE = "strip-medium.safetensors", "strip-flux.safetensors", "strip-z-image.safetensors"
KREA, QWEN = "strip-krea.safetensors", "strip-qwen.safetensors"

FIND = """([type, block]) => {
    const graphs = [app.graph, ...app.graph.subgraphs?.values() ?? []];
    const node = graphs.flatMap((graph) => graph._nodes).find((each) => each.type === type);
    const element = node.widgets.find((widget) => widget.element?.matches(".mmdit-blocks")).element;
    const cells = [...element.querySelectorAll(".mmdit-cell")];
    const place = (box) => [box.left + box.width / 2, box.top + box.height / 2, box.width, box.height];
    return {
        text: element.querySelector(".mmdit-text").value,
        value: node.widgets.find((widget) => widget.element === element).value,
        cells: cells.length,
        chosen: cells.flatMap((cell, i) => cell.ariaSelected === "true" ? [i] : []),
        label: cells[block]?.ariaLabel,
        at: cells[block] && place(cells[block].getBoundingClientRect()),
        field: place(element.querySelector(".mmdit-text").getBoundingClientRect()),
        rows: [...element.querySelectorAll(".mmdit-row")].map((row) => row.children.length),
        foot: element.querySelector(".mmdit-foot").textContent,
        hint: element.querySelector(".mmdit-foot").title,
        list: element.querySelector(".mmdit-strip").ariaLabel,
        opens: cells.flatMap((cell, i) => cell.matches(".opens") ? [i] : []),
        focused: element.contains(document.activeElement),
        inert: element.inert,
        height: element.getBoundingClientRect().height,
        measured: cells.filter((cell) => cell.matches(".measured")).length,
        size: [...node.size],
    };
}"""

PLACE = f"(args) => {{ const {{ at }} = ({FIND})(args); return at?.[3] ? at : null; }}"


class Strip:
    """The strip of a graph's only node of a type."""

    def __init__(self, comfy, node: str):
        self.comfy, self.node = comfy, node
        self.page, self.mouse = comfy.page, comfy.page.mouse

    def state(self, block: int = 0) -> dict[str, Any]:
        return self.comfy.run(FIND, [self.node, block])

    def value(self) -> str:
        """The text, equal in the field, the widget and the saved workflow."""
        state = self.state()
        saved = next(node for node in self.comfy.graph()["nodes"] if node["type"] == self.node)["widgets_values"]
        assert state["text"] == state["value"] == saved[self.position()]
        return state["value"]

    def position(self) -> int:
        return 0 if self.node != "BlockAnalysis" else 1

    def set(self, text: str) -> None:
        script = "([t, v]) => app.graph._nodes.find((n) => n.type === t).widgets.find((w) => w.name === 'blocks')"
        self.comfy.run(script + ".value = v", [self.node, text])

    def place(self, block: int, up: float = 0.0) -> tuple[float, float]:
        """The middle of a cell on screen, or a fraction of its height above it."""
        x, y, _, height = self.state(block)["at"]
        return x, y - up * height

    def click(self, block: int, **options: Any) -> None:
        self.mouse.click(*self.place(block), **options)

    def drag(self, *blocks: int) -> None:
        self.mouse.move(*self.place(blocks[0]))
        self.mouse.down()
        for block in blocks[1:]:
            self.mouse.move(*self.place(block), steps=3)
        self.mouse.up()

    def wait_stable(self) -> None:
        """Wait until the strip is drawn and no longer moves."""
        self.comfy.wait_stable(PLACE, [self.node, 0])

    def unzoom(self) -> None:
        """Set the view to normal zoom at the origin."""
        self.comfy.run("() => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0]; }")
        self.wait_stable()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def menu(self, block: int) -> list[str]:
        self.click(block, button="right")
        self.page.wait_for_selector(".mmdit-menu")
        return self.page.locator(".mmdit-menu button:not(:disabled)").all_inner_texts()

    def choose(self, text: str) -> None:
        self.menu(0)
        self.page.get_by_role("menu").get_by_text(text, exact=True).click()

    def until(self, condition: str, block: int = 0) -> None:
        """Wait until a condition on the state `s` holds."""
        self.page.wait_for_function(f"(args) => {{ const s = ({FIND})(args); return {condition}; }}",
                                    arg=[self.node, block], timeout=10_000)  # fmt: skip


def graph(*nodes: str, loader: str = "UNETLoader", file: str = MEDIUM) -> dict[str, Any]:
    """A loader and nodes in a row, as a saved workflow without custom widgets."""
    name = {"UNETLoader": [file, "default"], "MMDiTLoader": [file, "default"], "CheckpointLoaderSimple": [file]}
    made: list[dict[str, Any]] = [
        {"id": 1, "type": loader, "pos": [60, 120], "size": [260, 100], "widgets_values": name[loader],
         "outputs": [{"name": "MODEL", "type": "MODEL", "links": [1]}]},
    ]  # fmt: skip
    links = []
    for number, node in enumerate(nodes, start=1):
        links.append([number, number, 0, number + 1, 0, "MODEL"])
        made.append(
            {"id": number + 1, "type": node, "pos": [60 + 360 * (number - 0.1), 120], "size": [330, 220],
             "inputs": [{"name": "model", "type": "MODEL", "link": number}],
             "outputs": [{"name": "MODEL", "type": "MODEL", "links": [number + 1] if number < len(nodes) else []}]}
        )  # fmt: skip
    return {"last_node_id": len(made), "last_link_id": len(links), "nodes": made, "links": links, "version": 0.4}


def opened(comfy, *nodes: str, cells: int = 24, **loader: str) -> Strip:
    """Open a graph with these nodes at normal zoom. Returns: the strip of the first one."""
    comfy.load(graph(*nodes, **loader))
    strip = Strip(comfy, nodes[0])
    strip.until(f"s.cells === {cells}")
    strip.unzoom()
    return strip


def checked(shared) -> Iterator[Any]:
    """The open page of a module for one test, which must leave no error of the pack in the console."""
    shared.console_errors.clear()
    shared.page.set_default_timeout(15_000)
    yield shared
    assert shared.pack_errors() == []


def clear_hover_texts(comfy) -> None:
    """Wait until no tooltip is left; older frontends keep that of a node that is removed under the mouse."""
    comfy.page.mouse.move(20, 430)  # off the canvas, between the buttons
    comfy.run("() => document.querySelectorAll('.p-tooltip').forEach((each) => each.remove())")
    comfy.page.locator("[role=tooltip]:visible").first.wait_for(state="detached")


def write_headers(folder: Path) -> list[Path]:
    """Write the files above: headers of checkpoints, enough to count their blocks."""

    def listed(name: str, count: int) -> list[str]:
        return [f"{name.format(index)}.weight" for index in range(count)]

    refiners = [*listed("noise_refiner.{}.attention.qkv", 2), *listed("context_refiner.{}.attention.qkv", 2)]
    names = {
        MEDIUM: [
            *listed("model.diffusion_model.joint_blocks.{}.x_block.attn.qkv", 24),
            *listed("model.diffusion_model.joint_blocks.{}.x_block.attn2.qkv", 13),
        ],
        FLUX: [*listed("double_blocks.{}.img_attn.qkv", 19), *listed("single_blocks.{}.linear1", 38)],
        Z_IMAGE: [*refiners, *listed("layers.{}.attention.qkv", 30)],
        KREA: [*listed("blocks.{}.attn.wq", 28), "txtfusion.projector.weight"],
        QWEN: listed("transformer_blocks.{}.img_mod.1", 60),
    }
    folder.mkdir(exist_ok=True)
    for name, tensors in names.items():
        (folder / name).write_bytes(empty_tensors(tensors))
    return [folder / name for name in names]


def add_analysis(comfy, **settings: Any) -> None:
    """Add BlockAnalysis, linked to the graph's loader, prompt and latent, and a node that shows its sheet."""
    comfy.run(
        """(settings) => {
            const add = (type, values, place) => {
                const node = LiteGraph.createNode(type);
                app.graph.add(node);
                node.pos = place;
                for (const [name, value] of Object.entries(values))
                    node.widgets.find((each) => each.name === name).value = value;
                return node;
            };
            const of = (start) => app.graph._nodes.find((node) => node.type.startsWith(start));
            const loader = of("MMDiTLoader");
            const text = of("TripleTextEncode") ?? add("TripleTextEncode", { prompt: "a red circle" }, [800, 900]);
            const latent = of("Empty") ?? add("EmptySD3LatentImage", { width: 64, height: 64 }, [400, 1500]);
            const analysis = add("BlockAnalysis", settings, [800, 1500]);
            const preview = add("PreviewImage", {}, [1400, 1500]);
            if (text.inputs[0].link === null) loader.connect(1, text, 0);
            loader.connect(0, analysis, 0);
            text.connect(0, analysis, 1);
            text.connect(1, analysis, 2);
            latent.connect(0, analysis, 3);
            loader.connect(2, analysis, 4);
            analysis.connect(0, preview, 0);
        }""",
        settings,
    )
