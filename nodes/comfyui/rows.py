"""Whose row is it: the prompt of each row of a model call's batch.

A guider hands lists of conditionings to ComfyUI's `calc_cond_batch`, which says in `cond_or_uncond` which list each
chunk of a batch is from. A list is known by its identity among the guider's own, by name; never by its place. Where
another node may have changed the rows in between, they are known by their text's content, else they are unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...mmdit_core.control.spec import NEGATIVE, OTHER, POSITIVE

Entry = Mapping[str, Any]  # one conditioning of a list, as ComfyUI's samplers hold it
Chunk = tuple[int, int]  # the list, and the entry in it
BRANCHES = {"positive": POSITIVE, "negative": NEGATIVE}  # name of a guider's list -> branch; any other one is OTHER
BY_NUMBER = ("positive", "negative")  # what `cond_or_uncond` means in a call of ComfyUI's own, where no guider is known
CHANGED = "another node changed the rows of the batch, so that their prompts are not known"
FOREIGN = "another node predicts with conditionings that are not the guider's own"
UNSAID = "another node calls the model and does not say whose rows they are"
CONTENTS = ("c_crossattn", "y")  # of the model's inputs, those that tell prompts apart: the text, and the pooled text


@dataclass(frozen=True)
class Prompts:
    """The conditionings of one `calc_cond_batch` call.

    Fields: names, of the guider's lists, None for a list that is not the guider's; lists, as they were handed over;
    owned, the guider's list of each; changeable, True if another node may change the rows before the model is called;
    numbered, True if `cond_or_uncond` holds the numbers of these lists.
    """

    names: tuple[str | None, ...]
    lists: tuple[Sequence[Entry], ...]
    owned: tuple[Sequence[Entry], ...]
    changeable: bool
    numbered: bool = True


@dataclass(frozen=True)
class Rows:
    """The chunks of a model call's batch.

    Fields: names, of the guider's list that each chunk is from, None if unknown; entries, their conditionings, None if
    unknown; batch, the number of rows; groups, the rows of each chunk, () for equal chunks in order; unknown, why the
    prompts of some are not known, "" if they are.
    """

    names: tuple[str | None, ...]
    entries: tuple[Entry | None, ...]
    batch: int
    groups: tuple[tuple[int, ...], ...] = ()
    unknown: str = ""

    @property
    def branches(self) -> tuple[int, ...]:
        """The branch of each chunk."""
        return tuple(BRANCHES.get(name or "", OTHER) for name in self.names)

    @property
    def of_rows(self) -> list[str | None]:
        """The name of each row."""
        if not self.groups:
            return [self.names[row * len(self.names) // self.batch] for row in range(self.batch)]
        owner = {row: name for name, rows in zip(self.names, self.groups, strict=True) for row in rows}
        return [owner[row] for row in range(self.batch)]


def named(owned: Mapping[str, Sequence[Entry]], conds: Sequence[Sequence[Entry] | None], changeable: bool) -> Prompts:
    """The conditionings of a `calc_cond_batch` call by name. Args: owned, the guider's lists by name."""
    names = tuple(_name(owned, entries) for entries in conds)
    lists = tuple(entries or () for entries in conds)
    own = tuple(owned.get(name or "", entries) for name, entries in zip(names, lists, strict=True))
    return Prompts(names, lists, own, changeable)


def all_of(owned: Mapping[str, Sequence[Entry]]) -> Prompts:
    """The prompts of a call that another node makes within a run, outside of `calc_cond_batch`."""
    lists = tuple(owned.values())
    return Prompts(tuple(owned), lists, lists, changeable=True, numbered=False)


def _name(owned: Mapping[str, Sequence[Entry]], entries: Sequence[Entry] | None) -> str | None:
    """The name of the guider's list that holds these entries: itself, a part of it, or copies."""
    if not entries:
        return None
    if len(names := [name for name, own in owned.items() if own is entries]) == 1:
        return names[0]
    # An area's entry is copied to the other lists with its uuid, but with that list's text. So an entry is known by the
    # model's input of its text first. Context windows may cut that, too; their copies keep the uuids.
    for key, whole in ((id, False), (_made, False), (_uuid, True), (_uuid, False)):
        keys = [key(entry) for entry in entries]
        by_name = {name: [key(entry) for entry in own] for name, own in owned.items()}
        names = [name for name, own in by_name.items() if (own == keys if whole else set(keys) <= set(own))]
        if None not in keys and len(names) == 1:
            return names[0]
    return None


def _made(entry: Entry) -> Hashable:
    """What an entry and its copies share: the model's input made of their text; None without one."""
    made = entry.get("model_conds", {}).get("c_crossattn")
    return None if made is None else id(made)


def _uuid(entry: Entry) -> Hashable:
    return entry.get("uuid")


def rows_of_call(
    prompts: Prompts | None, options: Mapping[str, Any], batch: int, inputs: Mapping[str, Any], exact: bool = True
) -> Rows:
    """The prompt of each row of a model call.

    Args: prompts, of the running `calc_cond_batch`, None outside of a guider's run; options, the call's
        transformer_options; batch, its rows; inputs, the model's by ComfyUI's names; exact, False if the numbers of
        rows alone are needed: then contents are compared only where these do not follow from the options.
    """
    numbers = tuple(options.get("cond_or_uncond") or ())
    if prompts is None:
        if not numbers or batch % len(numbers):
            return _unknown(batch, CHANGED if numbers else UNSAID)
        names = tuple(BY_NUMBER[number] if number < len(BY_NUMBER) else None for number in numbers)
        return Rows(names, (None,) * len(names), batch)
    uuids = tuple(options.get("uuids") or ()) or (None,) * len(numbers)
    numbers = numbers if prompts.numbered else ()
    chunks = _all([_entry(prompts, number, uuid) for number, uuid in zip(numbers, uuids, strict=False)])
    in_order = chunks and batch % len(chunks) == 0
    if in_order and not (prompts.changeable and exact):
        return _rows(prompts, chunks, batch)
    found = _found(prompts, numbers, batch, inputs)
    if not found:
        return _unknown(batch, CHANGED if numbers else UNSAID)
    # Entries of one list with the same text are as good as one another.
    if in_order and all(chunks[row * len(chunks) // batch] in each for row, each in enumerate(found)):
        return _rows(prompts, chunks, batch)
    first = [min(each) for each in found]
    order = sorted(set(first), key=first.index)
    groups = tuple(tuple(row for row, each in enumerate(first) if each == chunk) for chunk in order)
    return _rows(prompts, order, batch, groups)


def _unknown(batch: int, reason: str) -> Rows:
    return Rows((None,), (None,), batch, unknown=reason)


def _rows(prompts: Prompts, chunks: Sequence[Chunk], batch: int, groups: tuple[tuple[int, ...], ...] = ()) -> Rows:
    names = tuple(prompts.names[number] for number, _ in chunks)
    entries = tuple(_original(prompts, chunk) for chunk in chunks)
    return Rows(names, entries, batch, groups, FOREIGN if None in names else "")


def _original(prompts: Prompts, chunk: Chunk) -> Entry:
    """The entry that a chunk's text is of. ComfyUI's copy for another list's area names that list's text as its own."""
    number, index = chunk
    entry, own = prompts.lists[number][index], prompts.owned[number]
    made = _made(entry)
    return next((each for each in own if made is not None and _made(each) == made), entry)


def _all(chunks: Sequence[Chunk | None]) -> list[Chunk]:
    """The chunks if all are known, else []."""
    known = [chunk for chunk in chunks if chunk is not None]
    return known if len(known) == len(chunks) else []


def _entry(prompts: Prompts, number: int, uuid: Any) -> Chunk | None:
    """The entry of a chunk; None if it cannot be told. The uuid is looked up in its own list alone."""
    entries = prompts.lists[number] if number < len(prompts.lists) else ()
    found = [index for index, entry in enumerate(entries) if uuid is None or entry.get("uuid") == uuid]
    return (number, found[0]) if found and (uuid is not None or len(entries) == 1) else None


def _found(prompts: Prompts, numbers: Sequence[int], batch: int, inputs: Mapping[str, Any]) -> list[set[Chunk]]:
    """For each row the entries whose text it holds, all of one list; [] if a row has none, or some of two lists."""
    given = {name: inputs[name] for name in CONTENTS if torch.is_tensor(inputs.get(name))}
    if CONTENTS[0] not in given or any(len(value) != batch for value in given.values()):
        return []
    among = [number for number in sorted(set(numbers) or range(len(prompts.lists))) if number < len(prompts.lists)]
    found = []
    for row in range(batch):
        own = {name: value[row] for name, value in given.items()}
        chunks = {(n, index) for n in among for index, entry in enumerate(prompts.lists[n]) if _holds(own, entry)}
        if len({number for number, _ in chunks}) != 1:
            return []
        found.append(chunks)
    return found


def _holds(row: Mapping[str, Tensor], entry: Entry) -> bool:
    """Whether the inputs of a row are an entry's."""
    made = {name: getattr(entry.get("model_conds", {}).get(name), "cond", None) for name in row}
    same: dict[str, Callable[[Tensor, Tensor], bool]] = {"c_crossattn": _is_text, "y": _is_pooled}
    return made["c_crossattn"] is not None and all(
        texts is None or same[name](row[name], texts) for name, texts in made.items()
    )


def _is_text(row: Tensor, texts: Tensor) -> bool:
    """Whether a row [L, W] is one of the texts [b, L, W]; ComfyUI repeats a text to the length of a longer one."""
    if texts.ndim != 3 or row.ndim != 2 or texts.shape[-1] != row.shape[-1] or row.shape[0] % texts.shape[1]:
        return False
    repeats = row.shape[0] // texts.shape[1]
    return any(torch.equal(row, text.to(row.device, row.dtype).repeat(repeats, 1)) for text in texts)


def _is_pooled(row: Tensor, pooled: Tensor) -> bool:
    return any(each.shape == row.shape and torch.equal(row, each.to(row.device, row.dtype)) for each in pooled)
