"""One sampling run: what the wrappers on a MODEL share while it lasts, and what is counted of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from ....mmdit_core.caching.step_cache import StepCacheRun
from ....mmdit_core.control.model_call import BlockCallCount
from ....mmdit_core.text.tokens import Positions
from ..modulation.count import ModulationCount
from ..modulation.table import ModulationTable
from ..rows import Prompts, Rows
from .adaln_cache import RunAdaLNCache

RUN = "mmdit_run"  # of the Run in the transformer_options of a run


@dataclass
class CallCount:
    """Model calls of a run, and rows of their batches by the name of the guider's list; None for unknown ones."""

    calls: int = 0
    rows: Counter[str | None] = field(default_factory=Counter)

    def add(self, rows: Rows) -> None:
        """Count one call."""
        self.calls += 1
        self.rows.update(rows.of_rows)


@dataclass
class Run:
    """One sampling run. The run's wrapper makes it, puts it into transformer_options, and drops it at the end.

    Fields:
        sigmas: of the schedule, [steps + 1].
        evaluated: all sigmas at which the solver evaluates the model, None if the sampler is not ours or adaptive.
        block_calls: of the block controls; all zero without any.
        step_cache: the state of the step cache, None without one.
        adaln: the modulation computed ahead, None without one.
        modulation: what the table of one of ComfyUI's networks did, None without one.
        sigma: of the present model call, set by our solver; None if the sampler is ComfyUI's.
        requested, computed: calls of the model, and those that no other node's cache answered in its place.
        guider: whose run it is, None outside of one.
        prompts: the conditionings of the running `calc_cond_batch`.
        requested_lists: names of the guider's lists of which predictions were requested.
        required: names of the guider's lists in which the phrases and parts of controls were looked for.
        blocks_came_by: True if the hooks of controls were called in all blocks in a model call.
        maps: token maps, by the id of the text's tensor.
        texts: what the first block is given for block prompts.
    """

    sigmas: tuple[float, ...] = ()
    evaluated: tuple[float, ...] | None = None
    block_calls: BlockCallCount = field(default_factory=BlockCallCount)
    step_cache: StepCacheRun | None = None
    adaln: RunAdaLNCache | ModulationTable | None = None
    modulation: ModulationCount | None = None
    sigma: float | None = None
    requested: CallCount = field(default_factory=CallCount)
    computed: CallCount = field(default_factory=CallCount)
    guider: Any = None
    prompts: Prompts | None = None
    requested_lists: set[str] = field(default_factory=set)
    required: set[str] = field(default_factory=set)
    blocks_came_by: bool = False
    maps: dict[int, Positions] = field(default_factory=dict)
    texts: dict[Any, dict[str, Any]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def phrases_known(self) -> bool:
        """True if a phrase or part that some prompt lacks is in another of its list, else the run was refused."""
        return self.guider is not None

    def add_call(self, count: CallCount, rows: Rows) -> None:
        """Count a model call. ComfyUI runs the parts of a batch in threads of their own on several GPUs."""
        with self.lock:
            count.add(rows)

    def add_block_calls(self, count: BlockCallCount) -> None:
        """Count the block calls of a model call."""
        with self.lock:
            self.block_calls.add(count)

    @property
    def calls(self) -> CallCount:
        """What the model computed. Some of ComfyUI's models do not report that a cache answered in their place."""
        return self.computed if self.computed.calls else self.requested


def run_of(transformer_options: Mapping[str, Any]) -> Run | None:
    """The run that these options are of; None outside of one."""
    return transformer_options.get(RUN)
