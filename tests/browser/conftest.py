"""ComfyUI's frontend in both of its renderers, driven through Chromium."""

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

TOAST = ".p-toast-message, [data-testid=toast]"  # a message in the corner; the second in newer frontends

# Everything that can move: the view, the nodes, and the number of nodes that Nodes 2.0 has drawn.
VIEW = """() => [app.canvas.ds.scale, ...app.canvas.ds.offset, document.querySelectorAll("[data-node-id]").length,
    ...app.graph._nodes.flatMap((node) => [...node.pos, ...node.size])]"""

# Resolves with the event that ends the run. The listeners are added first, so that a quick run is not missed.
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
    """ComfyUI's frontend: load a workflow, change it, queue it, inspect it. `page` is Playwright's page."""

    page: Page
    server: Any
    renderer: str
    console_errors: list[str] = field(default_factory=list)  # console errors and uncaught exceptions

    def run(self, script: str, argument: Any = None) -> Any:
        """Evaluate JavaScript in the page; `app` is ComfyUI's."""
        return self.page.evaluate(script, argument)

    def reload(self) -> None:
        """Reload the page, as the browser's button does."""
        self.page.reload()
        self.page.wait_for_function(browsers.READY, timeout=180_000)

    def load(self, workflow: dict[str, Any] | str | Path) -> None:
        """Open a workflow: its JSON, or the path of its file."""
        if not isinstance(workflow, dict):
            workflow = json.loads(Path(workflow).read_text(encoding="utf-8"))
        self.run("(data) => app.loadGraphData(data)", workflow)
        self.wait_stable()

    def wait_stable(self, look: str = VIEW, argument: Any = None) -> Any:
        """The result of a script once it stays the same; null means not yet.

        The canvas is drawn before each evaluation: a slow machine moves things many frames later.
        """
        return self.run(
            f"""async (argument) => {{
                const evaluate = {look};
                const drawn = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, 50)));
                for (let tries = 0, same = 0, last = null; tries < 600; tries += 1) {{
                    app.canvas.draw(true, true);
                    await drawn();
                    const now = evaluate(argument);
                    same = now && JSON.stringify(now) === JSON.stringify(last) ? same + 1 : 0;
                    if (same === 3) return now;
                    last = now;
                }}
                throw Error("null, or never stable");
            }}""",
            argument,
        )

    def fit(self) -> None:
        """Fit the graph into the window and wait until it is."""
        self.run("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.wait_stable()

    def graph(self) -> dict[str, Any]:
        """The workflow as it would be saved.

        As JSON, because Playwright turns undefined into null, which newer frontends refuse in a workflow.
        """
        return json.loads(self.run("() => JSON.stringify(app.graph.serialize())"))

    def prompt(self) -> dict[str, Any]:
        """The graph in API format, as it would be queued."""
        return self.run("async () => (await app.graphToPrompt()).output")

    def unknown_nodes(self) -> list[str]:
        """Node types in the open workflow that the frontend does not know."""
        return self.run("() => app.graph._nodes.map((n) => n.type).filter((t) => !LiteGraph.registered_node_types[t])")

    def queue(self) -> dict[str, Any]:
        """Queue the graph and wait for its end. Returns: the server's record of it.

        Raises: AssertionError with the reasons if it is rejected or fails.
        """
        self.page.set_default_timeout(300_000)
        ended = self.run(QUEUE)
        assert ended["kind"] == "execution_success", json.dumps(ended, indent=1)[:4000]
        return self.server.finished(ended["prompt_id"])

    def screenshot(self, path: Path) -> Path:
        """Fit the graph into the window and save a screenshot."""
        self.fit()
        self.page.screenshot(path=path)
        return path

    def record_error(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.console_errors.append(f"{message.text} ({message.location.get('url', '')})")

    def pack_errors(self) -> list[str]:
        """Console errors about this pack's files."""
        pack = f"/extensions/{ROOT.name}/"
        return [text for text in self.console_errors if pack in text or "mmdit" in text.lower()]


# One browser per module: while Playwright's synchronous API is open, its event loop runs in this thread and excludes
# other uses of asyncio.
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
    """ComfyUI's frontend with our settings, ready to use, in its own browser context.

    Args: blocked, a pattern of addresses whose requests are aborted.
    """
    chosen = {
        "Comfy.InstalledVersion": comfyui.frontend,
        "Comfy.VueNodes.Enabled": RENDERERS[renderer],
        "Comfy.Locale": language,
    }
    # The server stores settings, so each page sets all of them; otherwise tests affect each other.
    comfyui.post("/settings", browsers.SETTINGS | chosen)
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    try:
        page = context.new_page()
        if blocked:
            page.route(blocked, lambda route: route.abort())
        comfy = ComfyPage(page, comfyui, renderer)
        page.on("console", comfy.record_error)
        page.on("pageerror", lambda error: comfy.console_errors.append(f"uncaught: {error} {error.stack or ''}"))
        page.goto(comfyui.url)
        page.wait_for_function(browsers.READY, timeout=180_000)
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
    """One open page for all tests of a module, once in each renderer: opening a page is slow."""
    with opened(chromium, comfyui, request.param) as page:
        yield page


@pytest.fixture
def chinese(chromium: Browser, comfyui, renderer: str) -> Iterator[ComfyPage]:
    """An open page of ComfyUI in Chinese."""
    with opened(chromium, comfyui, renderer, language="zh") as page:
        yield page


@pytest.fixture
def without_scripts(chromium: Browser, comfyui) -> Iterator[ComfyPage]:
    """An open page in which the pack's scripts are blocked."""
    with opened(chromium, comfyui, "nodes2", blocked=f"**/extensions/{ROOT.name}/**") as page:
        yield page


@pytest.fixture
def test_name(request: pytest.FixtureRequest) -> str:
    return request.node.name.replace("[", "-").replace("]", "")
