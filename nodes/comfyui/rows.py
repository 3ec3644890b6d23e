"""Whose row is it: the prompt of each row of a model call's batch.

A guider hands lists of conditionings to ComfyUI's `calc_cond_batch`, which says in `cond_or_uncond` which list each
chunk of a batch is from. A list is known by its identity among the guider's own, by name; never by its place. Where
another node may have changed the rows in between, they are known by their text's content, else they are unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...mmdit_core.control.spec import NEGATIVE, OTHER, POSITIVE

Entry = Mapping[str, Any]  # one conditioning of a list, as ComfyUI's samplers hold it
BRANCHES = {"positive": POSITIVE, "negative": NEGATIVE}  # name of a guider's list -> branch; any other one is OTHER
BY_NUMBER = {0: "positive", 1: "negative"}  # what `cond_or_uncond` means where no guider is known


@dataclass(frozen=True)
class Prompts:
    """The conditionings of one `calc_cond_batch` call.

    Fields: names, of the guider's lists, None for a list that is not the guider's; lists, as they were handed over;
    changeable, True if another node may change the rows before the model is called.
    """

    names: tuple[str | None, ...]
    lists: tuple[Sequence[Entry], ...]
    changeable: bool


@dataclass(frozen=True)
class Rows:
    """The chunks of a model call's batch.

    Fields: branches, of the chunks; entries, their conditionings, None if unknown; groups, the rows of each chunk, ()
    for equal chunks in order; unknown, why the branches are not known, "" if they are.
    """

    branches: tuple[int, ...]
    entries: tuple[Entry | None, ...]
    groups: tuple[tuple[int, ...], ...] = ()
    unknown: str = ""


def named(owned: Mapping[str, Sequence[Entry]], conds: Sequence[Sequence[Entry] | None], changeable: bool) -> Prompts:
    """The conditionings of a `calc_cond_batch` call by name. Args: owned, the guider's lists by name."""
    return Prompts(
        tuple(_name(owned, entries) for entries in conds), tuple(entries or () for entries in conds), changeable
    )


def _name(owned: Mapping[str, Sequence[Entry]], entries: Sequence[Entry] | None) -> str | None:
    """The name of the guider's list that holds these entries. Context windows make copies, which keep their uuids."""
    if not entries:
        return None
    uuids = [entry.get("uuid") for entry in entries]
    by_name = {name: [entry.get("uuid") for entry in own] for name, own in owned.items()}
    for names in (
        [name for name, own in owned.items() if own is entries],
        [name for name, own in owned.items() if all(any(entry is each for each in own) for entry in entries)],
        # An area's entry is copied to the other lists with its uuid: a whole list is compared before a part of one.
        [name for name, own in by_name.items() if own == uuids],
        [name for name, own in by_name.items() if None not in uuids and set(uuids) <= set(own)],
    ):
        if len(names) == 1:
            return names[0]
    return None


def rows_of_call(prompts: Prompts | None, options: Mapping[str, Any], batch: int, context: Tensor | None) -> Rows:
    """The prompt of each row of a model call.

    Args: prompts, of the running `calc_cond_batch`, None outside of a guider's run; options, the call's
        transformer_options; batch, its rows; context [batch, L, W], its text.
    """
    numbers = options.get("cond_or_uncond") or ()
    if prompts is None:
        numbers = numbers or (0,)
        return Rows(tuple(BRANCHES.get(BY_NUMBER.get(number, ""), OTHER) for number in numbers), (None,) * len(numbers))
    uuids = options.get("uuids") or (None,) * len(numbers)
    chunks = _all([_entry(prompts, number, uuid) for number, uuid in zip(numbers, uuids, strict=False)])
    in_order = chunks and batch % len(chunks) == 0
    if in_order and (not prompts.changeable or _hold(context, prompts, chunks, batch)):
        return _rows(prompts, chunks, ())
    found = [] if context is None else _all([_find(row, prompts, numbers) for row in context])
    if not found:
        return Rows(
            (OTHER,), (None,), unknown="another node changed the rows of the batch, so that their prompts are not known"
        )
    order = sorted(set(found), key=found.index)
    groups = tuple(tuple(row for row, each in enumerate(found) if each == chunk) for chunk in order)
    return _rows(prompts, order, groups)


Chunk = tuple[int, int]  # the list, and the entry in it


def _rows(prompts: Prompts, chunks: Sequence[Chunk], groups: tuple[tuple[int, ...], ...]) -> Rows:
    names = [prompts.names[number] for number, _ in chunks]
    unknown = "" if None not in names else "another node predicts with conditionings that are not the guider's own"
    branches = tuple(OTHER if name is None else BRANCHES.get(name, OTHER) for name in names)
    return Rows(branches, tuple(prompts.lists[number][index] for number, index in chunks), groups, unknown)


def _all(chunks: Sequence[Chunk | None]) -> list[Chunk]:
    """The chunks if all are known, else []."""
    known = [chunk for chunk in chunks if chunk is not None]
    return known if len(known) == len(chunks) else []


def _entry(prompts: Prompts, number: int, uuid: Any) -> Chunk | None:
    """The entry of a chunk; None if it cannot be told. The uuid is looked up in its own list alone."""
    entries = prompts.lists[number] if number < len(prompts.lists) else ()
    found = [index for index, entry in enumerate(entries) if uuid is None or entry.get("uuid") == uuid]
    return (number, found[0]) if found else None


def _texts(entry: Entry) -> Tensor | None:
    """[b, L, W]: the text that the model is given for an entry."""
    return getattr(entry.get("model_conds", {}).get("c_crossattn"), "cond", None)


def _hold(context: Tensor | None, prompts: Prompts, chunks: Sequence[Chunk], batch: int) -> bool:
    """True if the rows are those of the chunks in order."""
    if context is None or len(context) != batch:
        return False
    parts = zip(context.chunk(len(chunks)), chunks, strict=True)
    return all(all(_is_text(row, prompts.lists[number][index]) for row in part) for part, (number, index) in parts)


def _find(row: Tensor, prompts: Prompts, numbers: Sequence[int]) -> Chunk | None:
    """The entry whose text a row [L, W] holds; None if there is none, or two of different lists."""
    found = [
        (number, index)
        for number in sorted(set(numbers) or range(len(prompts.lists)))
        for index, entry in enumerate(prompts.lists[number])
        if _is_text(row, entry)
    ]
    return found[0] if len({number for number, _ in found}) == 1 else None


def _is_text(row: Tensor, entry: Entry) -> bool:
    """Whether a row [L, W] is an entry's text, which ComfyUI repeats to the length of a longer one."""
    texts = _texts(entry)
    if texts is None or texts.shape[-1] != row.shape[-1] or row.shape[0] % texts.shape[1]:
        return False
    repeats = row.shape[0] // texts.shape[1]
    return any(torch.equal(row, text.to(row.device, row.dtype).repeat(repeats, 1)) for text in texts)
