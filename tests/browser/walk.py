"""A newcomer's way through ComfyUI's frontend with real mouse and keyboard events, in both renderers.

    python -m tests.browser.walk

Prints for each part the clicks (drags count as one), the keys (typed text counts as one) and the seconds, with those of
its run; screenshots are in .test-output/walk/.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from scripts import browser as browsers
from scripts.environment import ROOT
from scripts.server import temporary_server
from tests.browser.conftest import ARGUMENTS, RENDERERS, ComfyPage, opened
from tests.browser.quickstart import ADD, title
from tests.browser.strips import Strip, add_analysis
from tests.conftest import OUTPUT, Live

SCREENSHOTS = OUTPUT / "walk"
ENDED = """() => {
    window.ended ??= 0;
    if (window.watching) return;
    window.watching = true;
    for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
        app.api.addEventListener(kind, ({ detail }) => { window.ended += 1; window.last = { kind, ...detail }; });
}"""
# The position of an input's or output's dot.
DOT = """([type, kind, name]) => {
    const node = app.graph._nodes.find((each) => each.type === type);
    const slot = node[kind].findIndex((each) => each.name === name);
    const input = kind === "inputs";
    const key = `${node.id}-${input ? "in" : "out"}-${slot}`;
    const dot = document.querySelector(`[data-node-id="${node.id}"] [data-slot-key="${key}"]`);
    if (dot) {
        const box = (dot.querySelector(".slot-dot, .rounded-full") ?? dot).getBoundingClientRect();
        return [box.left + box.width / 2, box.top + box.height / 2];
    }
    return app.canvasPosToClientPos([...node.getConnectionPos(input, slot)]);
}"""


class Hand:
    """A mouse and a keyboard whose uses are counted."""

    def __init__(self, comfy: ComfyPage):
        self.comfy, self.page = comfy, comfy.page
        self.clicks = self.keys = 0
        self.start = time.monotonic()

    def click(self, target: Any, **options: Any) -> None:
        """Click at a position or on a locator."""
        self.clicks += 1
        if hasattr(target, "click"):
            target.click(**options)
        else:
            self.page.mouse.click(*target, **options)

    def drag(self, start: Any, end: Any) -> None:
        """Drag from one position to another."""
        self.clicks += 1
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*end, steps=8)
        self.page.mouse.up()

    def press(self, key: str) -> None:
        """Press a key."""
        self.keys += 1
        self.page.keyboard.press(key)

    def type(self, text: str) -> None:
        """Type a text."""
        self.keys += 1
        self.page.keyboard.type(text)

    def run(self, press: Any) -> float:
        """Start a run and wait for its end. Returns: its seconds."""
        self.comfy.run(ENDED)
        before, start = self.comfy.run("() => window.ended"), time.monotonic()
        press()
        self.page.wait_for_function("(before) => window.ended > before", arg=before, timeout=300_000)
        last = self.comfy.run("() => window.last")
        assert last["kind"] == "execution_success", last
        return time.monotonic() - start

    def line(self, part: str, more: str = "") -> None:
        """Print what a part took."""
        seconds = time.monotonic() - self.start
        print(f"| {self.comfy.renderer} | {part} | {self.clicks} | {self.keys} | {seconds:.1f} | {more} |", flush=True)
        self.comfy.wait_stable()
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        name = f"{part.split(':')[0].replace(' ', '-')}-{self.comfy.renderer}.png"
        self.page.screenshot(path=SCREENSHOTS / name)


def run_button(page: Any) -> Any:
    """ComfyUI's own button."""
    return page.get_by_role("button", name="Run", exact=True).first


def open_template(hand: Hand, name: str) -> None:
    """Templates, the pack's category, a template."""
    page = hand.page
    hand.click(page.get_by_role("button", name="Templates").first)
    hand.click(page.get_by_role("button", name=ROOT.name, exact=True).last)
    hand.click(page.locator(f"[data-testid='template-workflow-{name}']").first)
    page.wait_for_function("() => !document.querySelector('[data-testid^=template-workflow-]')")


def first_image(comfy: ComfyPage) -> None:
    """The page that `scripts/run.py --ui` names, and Run."""
    comfy.page.goto(f"{comfy.server.url}/?template=quickstart&source={ROOT.name}")
    comfy.page.wait_for_function("window.app?.graph?._nodes?.some((node) => node.type === 'MMDiTLoader')")
    hand = Hand(comfy)
    ran = hand.run(lambda: hand.click(run_button(comfy.page)))
    hand.line("first image", f"run {ran:.1f} s")


def changed_image(comfy: ComfyPage) -> None:
    """A template, another prompt, and Run."""
    hand = Hand(comfy)
    open_template(hand, "quickstart")
    comfy.page.wait_for_function("app.graph._nodes.some((node) => node.type === 'TripleTextEncode')")
    hand.click(comfy.page.locator("textarea").first)
    hand.press("Control+a")
    hand.type("two green squares above a purple circle on a white background")
    ran = hand.run(lambda: hand.press("Control+Enter"))
    hand.line("template to changed image", f"run {ran:.1f} s")


def boost(comfy: ComfyPage) -> None:
    """Text Boost found, linked and painted; compared; switched off and on."""
    comfy.run("() => { app.canvas.ds.scale = 0.6; app.canvas.ds.offset = [60, 60]; }")
    comfy.wait_stable()
    hand = Hand(comfy)
    page = comfy.page
    hand.click((700, 800), click_count=2)
    page.get_by_role("search").locator("input").first.wait_for()
    hand.type("text boost")
    page.get_by_test_id("result-item").filter(has_text="Text Boost").first.wait_for()
    hand.press("Enter")
    page.wait_for_function("app.graph._nodes.some((node) => node.type === 'TextBoost')")
    page.mouse.move(760, 600, steps=5)
    page.wait_for_timeout(500)
    hand.click((760, 600))  # the new node follows the mouse until a click
    comfy.wait_stable()
    comfy.page.wait_for_selector(".mmdit-blocks", state="attached")
    for start, end in (
        (("MMDiTLoader", "outputs", "MODEL"), ("TextBoost", "inputs", "model")),
        (("TextBoost", "outputs", "MODEL"), ("FlowMatchingSampler", "inputs", "model")),
    ):
        hand.drag(comfy.run(DOT, list(start)), comfy.run(DOT, list(end)))
    strip = Strip(comfy, "TextBoost")
    strip.until("s.cells === 8")
    hand.drag(strip.place(2), strip.place(6))
    ran = hand.run(lambda: hand.press("Control+Enter"))
    assert comfy.prompt()  # the graph is whole
    hand.line("boost found, linked, painted", f"run {ran:.1f} s")
    hand = Hand(comfy)
    hand.click(title(comfy, "TextBoost"))
    hand.click(page.locator(".selection-toolbox").get_by_role("button", name="Compare with and without"))
    page.wait_for_selector("dialog.mmdit-compare[open]")
    hand.line("boost compared")
    page.keyboard.press("Escape")
    times = []
    for _ in range(4):
        hand = Hand(comfy)
        hand.click(title(comfy, "TextBoost"))
        hand.press("Control+b")
        times.append(hand.run(partial(hand.press, "Control+Enter")))
    hand.line("toggle", "bypass and run: " + ", ".join(f"{seconds:.2f}" for seconds in times[1:]) + " s")


def analysis(comfy: ComfyPage) -> None:
    """From a finished analysis to an image with the blocks that it suggests."""
    comfy.load(ROOT / "workflows" / "quickstart.json")
    comfy.run(ADD, ["BlockSkip", {}])
    add_analysis(comfy, operations="skip", blocks="all", steps=8, cfg=4.5, seed=4)
    comfy.queue()
    strip = Strip(comfy, "BlockSkip")
    strip.until("s.measured === 8")
    strip.unzoom()
    comfy.run(
        "() => { const n = app.graph._nodes.find((e) => e.type === 'BlockSkip');"
        " app.canvas.ds.offset = [300 - n.pos[0], 300 - n.pos[1]]; }"
    )
    strip.wait_stable()
    hand = Hand(comfy)
    hand.click(strip.place(0), button="right")
    item = comfy.page.locator(".mmdit-menu button", has_text="suggestion")
    item.wait_for()
    comfy.page.screenshot(path=SCREENSHOTS / f"suggestion-{comfy.renderer}.png")
    hand.click(item)
    ran = hand.run(lambda: hand.click(run_button(comfy.page)))
    hand.line("analysis to applied list", f"blocks {strip.value()!r}, run {ran:.1f} s")


def first_edit(comfy: ComfyPage) -> None:
    """The template of edits by words, and Run."""
    hand = Hand(comfy)
    open_template(hand, "edit-by-words")
    comfy.page.wait_for_function("app.graph._nodes.some((node) => node.type === 'FlowEdit')")
    ran = hand.run(lambda: hand.click(run_button(comfy.page)))
    hand.line("first edit", f"run {ran:.1f} s")


PARTS = (first_image, changed_image, boost, analysis, first_edit)


def main(names: list[str]) -> None:
    """Walk in both renderers. Args: names of functions above; none: all."""
    print("| renderer | part | clicks | keys | seconds | of them |\n| --- | --- | --- | --- | --- | --- |")
    with temporary_server("walk") as server, sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=browsers.find(), args=list(ARGUMENTS))
        live = Live(server)
        for renderer in RENDERERS:
            for part in (each for each in PARTS if not names or each.__name__ in names):
                with opened(window, live, renderer) as comfy:
                    comfy.page.set_default_timeout(60_000)
                    if part is boost:
                        comfy.load(ROOT / "workflows" / "quickstart.json")
                    try:
                        part(comfy)
                    except Exception as error:  # the others are still worth their figures
                        print(f"| {renderer} | {part.__name__} | failed: {str(error).splitlines()[0]} |", flush=True)
                        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
                        comfy.page.screenshot(path=Path(SCREENSHOTS) / f"failed-{part.__name__}-{renderer}.png")
        window.close()


if __name__ == "__main__":
    main(sys.argv[1:])
