"""Starts what samples: ComfyUI in this process, or the workers of a Ray cluster."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

from scripts.console import say

from .cluster import Cluster
from .command_line import source_of
from .engine.host import Host
from .engine.renderer import Renderer
from .prompts import Prompt
from .runners import InProcess, Runner


@contextlib.contextmanager
def start_runner(given: argparse.Namespace, prompts: tuple[Prompt, ...]) -> Iterator[Runner]:
    """The runner that the options ask for, while the context lasts."""
    source, base = source_of(given), given.base and given.base.absolute()
    if any(prompt.negative for prompt in prompts):
        say("The column negative is not used: the negative prompt is the workflow's")
    if given.ray:
        with Cluster(
            source, prompts, address=given.ray, base=base, threads=given.threads, workers=given.workers
        ) as cluster:
            yield cluster
    else:
        yield InProcess(Renderer(source, Host(base, given.threads)), prompts)
