"""Fixtures for all tests: the live ComfyUI server; and the rules for skipped tests and GPU tests."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from scripts import frontend, installations
from scripts.client import Client
from scripts.console import UserError
from scripts.installations import Installation
from scripts.server import Server

# A time limit for each example says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / ".test-output"


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collections.

    ComfyUI collects whenever a MODEL is gone, which is in nearly every test; half a million objects of torch and of
    ComfyUI take a third of a second each time.
    """
    gc.collect()
    gc.freeze()


class Live(Client):
    """A ComfyUI server with this pack in it, up for the whole test session (see scripts/client.py).

    `base` contains its models, input, output, user and custom_nodes folders; `frontend` is the version that it serves.
    """

    def __init__(self, server: Server, frontend: str | None = None):
        super().__init__(server.url)
        self.server, self.base = server, server.base
        self.frontend = frontend or self.get("/system_stats")["system"]["required_frontend_version"]

    def log(self) -> str:
        """The server's log so far, without colours."""
        return self.server.read_log()


def find_installation() -> Installation:
    """The ComfyUI that scripts/test.py found or made; tests never install anything."""
    found = installations.without_installing()
    if found is None:
        raise pytest.UsageError("There is no ComfyUI to test with: run `python scripts/test.py` once.")
    return found


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Live]:
    """One live ComfyUI server for all tests: `comfyui.run(prompt)`, `comfyui.object_info(node)`, `comfyui.events()`."""
    base = tmp_path_factory.mktemp("comfyui")
    newest = pytestconfig.getoption("frontend") == "newest"
    arguments = ("--front-end-root", str(frontend.newest(Path(sys.executable)))) if newest else ()
    with Server(find_installation(), base, arguments=arguments) as server:
        if failure := server.pack_failure():
            pytest.fail(f"ComfyUI could not import this pack:\n{failure}", pytrace=False)
        yield Live(server, frontend.NEWEST if newest else None)


@pytest.fixture(scope="session")
def test_output() -> Path:
    """A folder for screenshots and logs; not in git."""
    OUTPUT.mkdir(exist_ok=True)
    return OUTPUT


class PlainRoot:
    """Keeps pytest from importing the repository, a package for ComfyUI, before the first test."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--frontend",
        choices=("pinned", "newest"),
        default="pinned",
        help="ComfyUI's frontend: the one that its requirements pin, or the newest in scripts/frontend.py",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(PlainRoot())
    # Before the tests, so that processes of one run do not fetch it at the same time.
    if config.getoption("frontend") == "newest":
        try:
            frontend.newest(Path(sys.executable))
        except UserError as error:
            raise pytest.UsageError(str(error)) from error


def is_for_another_renderer(item: pytest.Item) -> bool:
    """Whether a test is for one renderer of the newest frontend, by its marker, and this is the other."""
    marker, parameters = item.get_closest_marker("frontend"), getattr(item, "callspec", None)
    wanted = marker.kwargs.get("renderer") if marker else None
    found = parameters.params.get("shared", parameters.params.get("renderer")) if parameters else None
    return wanted is not None and found not in (None, wanted)


ORDER = ("core", "nodes", "browser")  # the fast ones first
LONGEST = "test_workflows.py"  # the first of its folder: as the last file of a run it would keep one process alone


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the fast folders first; deselect, not skip, tests that need a GPU if there is none."""

    def place(item: pytest.Item) -> tuple[int, bool]:
        parts = item.path.relative_to(ROOT).parts
        folder = next((index for index, name in enumerate(ORDER) if name in parts), len(ORDER))
        return folder, item.path.name != LONGEST

    items.sort(key=place)
    if config.getoption("frontend") == "newest":
        elsewhere = [item for item in items if is_for_another_renderer(item)]
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in elsewhere]
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=gpu_tests)
        items[:] = [item for item in items if item not in gpu_tests]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A skipped test is a failure in CI, where nothing may be missing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped and os.environ.get("CI", "").lower() in ("1", "true") and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line("")
        reporter.write_line(f"{len(skipped)} skipped: in CI that is a failure.", red=True)
