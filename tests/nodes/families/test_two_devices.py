"""ComfyUI runs one model on several devices in a thread each: a block call's options reach its own attention alone."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from threading import Barrier, Thread
from typing import Any

import pytest

CODE = "comfy.ldm.ernie.model"


@pytest.fixture
def calls(bench):
    """The context of a block call, in which the attention of a module of code is given its options."""
    return bench.module("comfyui.block_forward")._attending


def test_two_block_calls_at_once_have_their_own_options_and_leave_the_attention_as_it_was(calls, monkeypatch):
    module: Any = importlib.import_module(CODE)
    together, given = Barrier(3, timeout=20), {}

    def attention(name: str, transformer_options: Mapping[str, Any] | None = None) -> None:
        together.wait()  # all are in their calls
        given[name] = transformer_options
        together.wait()

    monkeypatch.setattr(module, "optimized_attention", attention)

    def controlled(name: str) -> None:
        with calls(CODE, {"of": name}):
            module.optimized_attention(name)

    # The third is a model without controls.
    threads = [Thread(target=controlled, args=(name,)) for name in ("first", "second")]
    threads.append(Thread(target=lambda: module.optimized_attention("plain")))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert given == {"first": {"of": "first"}, "second": {"of": "second"}, "plain": None}
    assert module.optimized_attention is attention


def test_an_error_in_a_block_leaves_the_attention_as_it_was(calls):
    module: Any = importlib.import_module(CODE)
    before = module.optimized_attention
    with pytest.raises(RuntimeError), calls(CODE, {}):
        raise RuntimeError
    assert module.optimized_attention is before
