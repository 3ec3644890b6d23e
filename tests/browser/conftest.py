"""A page of ComfyUI's web interface, in both of its renderers, driven through Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from scripts import browser as browsers

ROOT = Path(__file__).parents[2]
RENDERERS = {"classic": False, "nodes2": True}  # name -> the setting Comfy.VueNodes.Enabled
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# They are kept on the server, so each page sets all of them: tests must not leak into each other.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.RightSidePanel.IsOpen": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}
READY = "window.app?.extensionManager && app.isGraphReady && !document.querySelector('#splash-loader')"

# Everything that a person sees move: the view, the nodes, and how many of them Nodes 2.0 has drawn.
VIEW = """() => [app.canvas.ds.scale, ...app.canvas.ds.offset, document.querySelectorAll("[data-node-id]").length,
    ...app.graph._nodes.flatMap((node) => [...node.pos, ...node.size])]"""

# Resolves with the event that ends the run; the listeners come first, so that a quick run is not missed.
QUEUE = """async () => {
    const ended = new Promise((resolve) => {
        for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
            app.api.addEventListener(kind, (event) => resolve({ kind, ...event.detail }), { once: true });
    });
    const accepted = await app.queuePrompt(0, 1);
    if (accepted === false) return { kind: "rejected", errors: app.lastNodeErrors };
    return await ended;
}"""


@dataclass
class ComfyPage:
    """ComfyUI's page: load a workflow, change it, queue it, look at it. `page` is Playwright's own."""

    page: Page
    server: Any
    renderer: str
    complaints: list[str] = field(default_factory=list)  # console errors and uncaught exceptions

    def run(self, script: str, argument: Any = None) -> Any:
        """Evaluate JavaScript in the page; `app` is ComfyUI's."""
        return self.page.evaluate(script, argument)

    def reload(self) -> None:
        """As the browser's own button."""
        self.page.reload()
        self.page.wait_for_function(READY, timeout=180_000)

    def load(self, workflow: dict[str, Any] | str | Path) -> None:
        """Open a workflow: its JSON, or the path of its file."""
        if not isinstance(workflow, dict):
            workflow = json.loads(Path(workflow).read_text(encoding="utf-8"))
        self.run("(data) => app.loadGraphData(data)", workflow)
        self.at_rest()

    def at_rest(self, look: str = VIEW, argument: Any = None) -> Any:
        """What a script tells of the page, once it stays the same; null: there is nothing to be seen yet.

        Each look follows a drawing of the canvas: a page on a slow machine moves things many frames later.
        """
        return self.run(
            f"""async (argument) => {{
                const look = {look};
                const drawn = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, 50)));
                for (let looks = 0, same = 0, last = null; looks < 600; looks += 1) {{
                    app.canvas.draw(true, true);
                    await drawn();
                    const now = look(argument);
                    same = now && JSON.stringify(now) === JSON.stringify(last) ? same + 1 : 0;
                    if (same === 3) return now;
                    last = now;
                }}
                throw Error("not there, or never at rest");
            }}""",
            argument,
        )

    def fit(self) -> None:
        """Fit the graph into the window; the page takes its time to."""
        self.run("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.at_rest()

    def graph(self) -> dict[str, Any]:
        """The workflow as it would be saved."""
        return self.run("() => app.graph.serialize()")

    def prompt(self) -> dict[str, Any]:
        """The graph in API format, as it would be queued."""
        return self.run("async () => (await app.graphToPrompt()).output")

    def unknown_nodes(self) -> list[str]:
        """Types in the open workflow that the page does not know."""
        return self.run("() => app.graph._nodes.map((n) => n.type).filter((t) => !LiteGraph.registered_node_types[t])")

    def queue(self) -> dict[str, Any]:
        """Queue the graph and wait for its end; returns the server's record of it.

        Raises: AssertionError with the page's reasons if it is rejected or fails.
        """
        self.page.set_default_timeout(300_000)
        ended = self.run(QUEUE)
        assert ended["kind"] == "execution_success", json.dumps(ended, indent=1)[:4000]
        return self.server.finished(ended["prompt_id"])

    def screenshot(self, path: Path) -> Path:
        """Fit the graph into the window and take a picture of it."""
        self.fit()
        self.page.screenshot(path=path)
        return path

    def hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(f"{message.text} ({message.location.get('url', '')})")

    def pack_complaints(self) -> list[str]:
        """What the console said about this pack's own files."""
        pack = f"/extensions/{ROOT.name}/"
        return [text for text in self.complaints if pack in text or "mmdit" in text.lower()]


# One browser for each module: while Playwright's synchronous form is open, its event loop runs in this thread, and
# nothing else here could use asyncio.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    executable = browsers.find()
    if executable is None:
        pytest.skip("no Chromium, Chrome or Edge on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser, comfyui: Any, renderer: str, *, language: str = "en", blocked: str | None = None
) -> Iterator[ComfyPage]:
    """ComfyUI's page with our settings, ready to use, in a browser context of its own.

    Args: blocked, a pattern of addresses that the browser does not get.
    """
    version = comfyui.get("/system_stats")["system"]["required_frontend_version"]
    chosen = {
        "Comfy.InstalledVersion": version,
        "Comfy.VueNodes.Enabled": RENDERERS[renderer],
        "Comfy.Locale": language,
    }
    comfyui.post("/settings", SETTINGS | chosen)
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    try:
        page = context.new_page()
        if blocked:
            page.route(blocked, lambda route: route.abort())
        comfy = ComfyPage(page, comfyui, renderer)
        page.on("console", comfy.hear)
        page.on("pageerror", lambda error: comfy.complaints.append(f"uncaught: {error} {error.stack or ''}"))
        page.goto(comfyui.url)
        page.wait_for_function(READY, timeout=180_000)
        yield comfy
    finally:
        context.close()


@pytest.fixture(params=RENDERERS)
def renderer(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def comfy(chromium: Browser, comfyui, renderer: str) -> Iterator[ComfyPage]:
    """An open page of ComfyUI, once in each renderer."""
    with opened(chromium, comfyui, renderer) as page:
        yield page


@pytest.fixture(scope="module", params=RENDERERS)
def shared(request: pytest.FixtureRequest, chromium: Browser, comfyui) -> Iterator[ComfyPage]:
    """One open page for all tests of a module, once in each renderer: opening it is what takes the time."""
    with opened(chromium, comfyui, request.param) as page:
        yield page


@pytest.fixture
def chinese(chromium: Browser, comfyui, renderer: str) -> Iterator[ComfyPage]:
    """An open page of ComfyUI in Chinese."""
    with opened(chromium, comfyui, renderer, language="zh") as page:
        yield page


@pytest.fixture
def without_scripts(chromium: Browser, comfyui) -> Iterator[ComfyPage]:
    """An open page in which the pack's own scripts did not load."""
    with opened(chromium, comfyui, "nodes2", blocked=f"**/extensions/{ROOT.name}/**") as page:
        yield page


@pytest.fixture
def test_name(request: pytest.FixtureRequest) -> str:
    return request.node.name.replace("[", "-").replace("]", "")
