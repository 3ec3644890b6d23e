"""Prompt sets: the shipped ones, and files in the formats of GenEval, T2I-CompBench++, CSV and plain text."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attributes.prompt_sets import SETS, read_set

COMPBENCH = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
_SPLIT = re.compile(r"_(train|val|test)(_.*)?$")  # "color_val", "complex_train_action"
CAPTION_COLUMNS = ("caption", "prompt", "text")
COLOUR_COLUMNS = ("colors", "colours", "color", "colour", "objects", "object_color", "object_colour", "object_colors")


class PromptSetError(ValueError):
    """A prompt set that cannot be read: which source, where in it, and what is right."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what an image of it must have.

    Fields: text; category, "" for none; expected, in the schema of `attributes.prompt_sets.Entry`, empty if only the
        text says it; negative, the negative prompt, which studies and `generate` do not use.
    """

    text: str
    category: str
    expected: Mapping[str, Any] = field(hash=False)
    negative: str = ""


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one source.

    Fields: name, for reports; prompts, one of each category in turn; kind: shapes, objects, geneval, compbench, text
        or csv.
    """

    name: str
    prompts: tuple[Prompt, ...]
    kind: str


def default_set(judge_kind: str) -> str:
    """The shipped set that a kind of judge can check."""
    return "shapes" if judge_kind == "shapes" else "objects"


def read_prompts(source: str, category: str = "") -> PromptSet:
    """Read a prompt set.

    Args: source, a shipped set's name, or the path of a file or a folder; category, of the prompts that have none.
        *.jsonl: GenEval's metadata, one object a line.
        *.csv: a header with a column caption, prompt or text, and optionally category and negative. What an image must
            have is read from the columns object1, relation, object2; or number, object; or one of COLOUR_COLUMNS with
            a JSON object of object -> colour.
        *.txt: a prompt a line; empty lines are left out, and "#" has no meaning. A name of T2I-CompBench++, such as
            color_val.txt, gives the category.
        a folder: all *.txt in it, or only *_val.txt if there are any.
    Returns: the prompts; those of several categories in turn one of each, so that any first N are a mix of them.
    Raises: PromptSetError with the source, the line, and what is right.
    """
    if source in SETS:
        return PromptSet(source, tuple(Prompt(e.text, e.category, e.expected) for e in read_set(source)), source)
    path = Path(source)
    if path.is_dir():
        kind, prompts = "compbench", _read_folder(path)
    elif not path.is_file():
        raise PromptSetError(f"{source!r} is neither a prompt set ({', '.join(SETS)}) nor a file or folder")
    elif path.suffix.lower() in READERS:
        kind, prompts = READERS[path.suffix.lower()](path, category)
    else:
        raise PromptSetError(f"{source!r}: the name of a prompt file ends with {', '.join(READERS)}")
    if not prompts:
        raise PromptSetError(f"{source!r} has no prompts")
    for prompt in prompts:
        try:
            json.dumps([prompt.text, prompt.category, prompt.expected], ensure_ascii=False).encode()
        except UnicodeEncodeError:  # JSON can hold a half of a surrogate pair, which is no text
            raise PromptSetError(f"{source!r}: {prompt.text!r} has a character that is not Unicode") from None
    name = path.resolve().name if path.is_dir() else path.stem
    return PromptSet(name, tuple(in_turn(prompts)), kind)


def in_turn(prompts: Sequence[Prompt]) -> list[Prompt]:
    """One prompt of each category in turn; within a category the order stays."""
    categories: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        categories.setdefault(prompt.category, []).append(prompt)
    rows = itertools.zip_longest(*categories.values())
    return [prompt for row in rows for prompt in row if prompt is not None]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # newlines inside a cell of CSV stay as they are
    except UnicodeDecodeError as error:
        raise PromptSetError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise PromptSetError(f"{path} cannot be read: {error.strerror}") from None


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    """The lines that are not empty, with their numbers. Only newlines end a line."""
    for number, line in enumerate(re.split(r"\r\n|\r|\n", _text(path)), start=1):
        if line.strip():
            yield number, line.strip()


def _read_text(path: Path, category: str) -> tuple[str, list[Prompt]]:
    base = _SPLIT.sub("", path.stem)
    known = base in COMPBENCH
    category = category or (base if known else "")
    return "compbench" if known else "text", [Prompt(line, category, {}) for _, line in _lines(path)]


def _read_folder(folder: Path) -> list[Prompt]:
    files = sorted(folder.glob("*.txt"))
    chosen = [path for path in files if path.stem.endswith("_val")] or files
    return [Prompt(line, _SPLIT.sub("", path.stem), {}) for path in chosen for _, line in _lines(path)]


def _read_geneval(path: Path, category: str) -> tuple[str, list[Prompt]]:
    prompts = []
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise PromptSetError(f"{where} is not JSON") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
            raise PromptSetError(f'{where} has no "prompt"; GenEval\'s lines are {{"tag", "include", "prompt"}}')
        expected = {name: entry[name] for name in ("include", "exclude") if entry.get(name)}
        check_expected(expected, where)
        prompts.append(Prompt(entry["prompt"].strip(), str(entry.get("tag") or category), expected))
    return "geneval", prompts


def check_expected(expected: Mapping[str, Any], where: str) -> None:
    """Check an expectation in GenEval's schema.

    Raises: PromptSetError with `where`, and the first entry that is wrong.
    """
    for name in ("include", "exclude"):
        entries = expected.get(name, [])
        if not isinstance(entries, list):
            raise PromptSetError(f'{where}: "{name}" must be a list, not {entries!r}')
        for entry in entries:
            if reason := _wrong(entry, len(entries)):
                raise PromptSetError(f'{where}: in "{name}", {json.dumps(entry)}: {reason}')


def _wrong(entry: Any, length: int) -> str:
    """What is wrong in an entry of a list of this length, "" if nothing."""
    if not isinstance(entry, dict) or not isinstance(entry.get("class"), str) or not entry["class"]:
        return 'it needs a "class"'
    count, colour, position = entry.get("count", 1), entry.get("color"), entry.get("position")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        return '"count" is a number above 0'
    if colour is not None and not isinstance(colour, str):
        return '"color" is a word'
    if position is None:
        return ""
    fits = isinstance(position, list) and len(position) == 2 and isinstance(position[0], str)
    if not fits or type(position[1]) is not int or not 0 <= position[1] < length:
        return '"position" is [relation, index of the other entry]'
    return ""


def _read_csv(path: Path, category: str) -> tuple[str, list[Prompt]]:
    try:
        rows = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
        names = {name.strip().lower(): name for name in rows.fieldnames or () if name}
        caption = next((name for name in CAPTION_COLUMNS if name in names), None)
        if caption is None:
            raise PromptSetError(f"{path}: its first line has no column {', '.join(CAPTION_COLUMNS)}")
        prompts = []
        for row in rows:
            cells = {name: (row[column] or "").strip() for name, column in names.items()}
            if cells[caption]:
                expected = _expected(cells, f"{path}, line {rows.line_num}")
                prompts.append(
                    Prompt(cells[caption], cells.get("category") or category, expected, cells.get("negative", ""))
                )
    except csv.Error as error:
        raise PromptSetError(f"{path} is not CSV: {error}") from None
    return "csv", prompts


def _expected(cells: Mapping[str, str], where: str) -> dict[str, Any]:
    """GenEval's schema from the cells of a row: a relation, a number, or colours."""
    if all(cells.get(name) for name in ("object1", "relation", "object2")):
        # As in GenEval's files the object with the position follows the one that it names.
        first, second = cells["object1"], cells["object2"]
        return {"include": [{"class": second}, {"class": first, "position": [cells["relation"], 0]}]}
    if cells.get("number") and cells.get("object"):
        if not re.fullmatch(r"0*[1-9][0-9]{0,5}", cells["number"]):
            raise PromptSetError(f"{where}: the number {cells['number']!r:.40} is not a whole number from 1 to 999999")
        noun, count = cells["object"], int(cells["number"])
        return {"include": [{"class": noun, "count": count}], "exclude": [{"class": noun, "count": count + 1}]}
    colours = next((cells[name] for name in COLOUR_COLUMNS if cells.get(name)), "")
    if not colours:
        return {}
    try:
        pairs = json.loads(colours)
    except (ValueError, RecursionError):
        pairs = None
    if not isinstance(pairs, dict) or not all(isinstance(value, str) and value for value in pairs.values()):
        raise PromptSetError(f'{where}: {colours!r} is not a JSON object such as {{"car": "red"}}')
    return {"include": [{"class": noun, "color": colour} for noun, colour in pairs.items()]} if pairs else {}


READERS = {".jsonl": _read_geneval, ".csv": _read_csv, ".txt": _read_text}
