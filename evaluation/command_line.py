"""The options of `python -m evaluation`."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from pathlib import Path

from mmdit_core.control.spec import BRANCHES, CHOICES, MOST_STRENGTH

from .cluster import LOCAL
from .engine.models import CLIP_LOADERS
from .engine.renderer import Source
from .judges import KINDS
from .study.settings import SWEEPS, SettingsError

SWEEP_DEFAULTS = {"modes": ("residual",), "strength": (2.0,), "max_loss": 2.0}


def parse(words: list[str]) -> argparse.Namespace:
    """Parse a command line; `command` of the answer is its name."""
    parser = argparse.ArgumentParser(prog="python -m evaluation", description="Studies of a model's blocks.")
    commands = parser.add_subparsers(required=True)
    about = "which block serves which attribute; the best boosts and skip lists, proven; report and presets"
    each = commands.add_parser("study", help=about, description=about, formatter_class=_Help)
    _common(each)
    _judge(each)
    _sweep(each)
    each.set_defaults(command="study")
    about = "a prompt set to images, named as GenEval and T2I-CompBench expect them"
    each = commands.add_parser("generate", help=about, description=about, formatter_class=_Help)
    _common(each)
    each.set_defaults(command="generate")
    return parser.parse_args(words)


def source_of(given: argparse.Namespace) -> Source:
    """Where the images come from."""
    names = ("steps", "cfg", "solver", "shift", "width", "height")
    settings = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    model, vae, *clips = (_from_here(name) for name in (given.model, given.vae, *given.clip))
    workflow = given.workflow and given.workflow.absolute()
    return Source(workflow, model, tuple(clips), vae, given.clip_type, settings, given.batch)


def _from_here(name: str) -> str:
    """A file's path for processes in other folders; another name as it is."""
    return str(Path(name).absolute()) if name and Path(name).is_file() else name


def check(given: argparse.Namespace) -> None:
    """Raises: SettingsError for an option that would have no effect, or for too many files."""
    for option, used, right in _unused(given):
        if used:
            raise SettingsError(f"--{option}: it has no effect here. {right}")
    if len(given.clip) > len(CLIP_LOADERS):
        right = f"ComfyUI's loaders take at most {len(CLIP_LOADERS)}"
        raise SettingsError(f"--clip: {len(given.clip)} files. {right}")


def _unused(given: argparse.Namespace) -> Iterator[tuple[str, bool, str]]:
    """Options that others make useless: the name, whether it is given, and what is right."""
    if given.workflow:
        for name in ("clip", "clip_type", "vae"):
            yield name.replace("_", "-"), bool(getattr(given, name)), "Set it in the workflow, or give --model"
    right = "It is for a --clip of one or two files: ComfyUI's loaders of more have no type"
    yield "clip-type", bool(given.clip_type) and len(given.clip) not in (1, 2), right
    yield "workers", bool(given.workers) and not given.ray, "It is for --ray"
    if given.command == "study":
        yield "judge-url", bool(given.judge_url) and given.judge != "endpoint", "It is for --judge endpoint"
        yield "judge-model", bool(given.judge_model) and given.judge == "shapes", "It is for --judge endpoint or clip"
        for name, sweep in (("modes", "boost"), ("strength", "boost"), ("max_loss", "skip")):
            changed = getattr(given, name) != SWEEP_DEFAULTS[name]
            yield name.replace("_", "-"), changed and sweep not in given.sweep, f"It is for a --sweep with {sweep}"


def numbers(text: str, name: str) -> tuple[int, ...]:
    """Numbers and ranges such as "0-3, 7". Raises: SettingsError."""
    found: list[int] = []
    for part in filter(None, re.split(r"[\s,]+", text)):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        if match is None:
            raise SettingsError(f"--{name}: {part!r} is no number or range. Write such as 0-3 or 0,2,5")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise SettingsError(f"--{name}: {part!r} ends before it begins. Write {last}-{first}")
        found += range(first, last + 1)
    if not found:
        raise SettingsError(f"--{name}: {text!r} names no number. Write such as 0-3")
    return tuple(dict.fromkeys(found))


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, and not those that say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, "", []) else super()._get_help_string(action)


def _common(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--workflow", type=Path, metavar="API.json", help="of ComfyUI: Workflow > Export (API)")
    model.add_argument("--model", default="", help="a model file: a path, or a name that MMDiTLoader lists")
    parser.add_argument("--clip", default=[], nargs="+", metavar="FILE", help="text encoders, if not in the model file")
    parser.add_argument("--clip-type", default="", help="of ComfyUI's CLIP loader, if not the model's usual one")
    parser.add_argument("--vae", default="", metavar="FILE", help="if not in the model file")
    parser.add_argument(
        "--prompts", default="", metavar="SET", help="shapes, objects, or a file or folder: see docs/studies.md"
    )
    parser.add_argument("--limit", type=_count, default=0, metavar="N", help="use the first N prompts; 0: all")
    parser.add_argument("--seeds", default="0", metavar="0-3", help="seeds of each prompt")
    for name, kind in (("steps", _count), ("cfg", _finite), ("solver", str), ("shift", _finite)):
        parser.add_argument(f"--{name}", type=kind, help="in place of the workflow's")
    for name in ("width", "height"):
        parser.add_argument(f"--{name}", type=_count, help="pixels, in place of the workflow's")
    parser.add_argument("--batch", type=_batch, default=1, help="prompts in one call of FlowMatchingSampler")
    parser.add_argument("--threads", type=_positive, default=1, help="of torch on the CPU")
    parser.add_argument(
        "--max-disk-gb", type=_size, default=0.0, help="keep no images beyond this size of the folder; 0: no limit"
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const=LOCAL,
        default="",
        metavar="ADDRESS",
        help="sample on a Ray cluster: see docs/studies.md",
    )
    parser.add_argument("--workers", type=_count, default=0, help="of the cluster; 0: one for each device")
    parser.add_argument("--base", type=Path, help="ComfyUI's base folder, with its models and user folders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results; a second start continues")


def _judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--judge", choices=KINDS, default="shapes", help="shapes judges the small model's images alone")
    parser.add_argument("--judge-url", default="", help="of an endpoint, such as http://localhost:11434/v1")
    parser.add_argument(
        "--judge-model", default="", help="its name at the endpoint; for clip, the folder of its weights"
    )


def _sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sweep", type=_choices(SWEEPS), default=SWEEPS, help="operations, as skip,disable,boost")
    parser.add_argument(
        "--modes", type=_choices(CHOICES["mode"]), default=SWEEP_DEFAULTS["modes"], help="of the boosts"
    )
    parser.add_argument(
        "--strength", type=_strengths, default=SWEEP_DEFAULTS["strength"], help="of the boosts, as 1.5,2"
    )
    parser.add_argument("--blocks", default="all", help="as the nodes take them: all, 0-5, even")
    parser.add_argument("--branch", type=_choices(tuple(BRANCHES)), default=("both",), help="as positive,negative,both")
    parser.add_argument("--choose", type=_count, default=0, metavar="N", help="prompts to choose on; 0: one half")
    parser.add_argument("--controls", type=int, default=20, help="random block sets for each choice")
    parser.add_argument(
        "--max-loss",
        type=float,
        default=SWEEP_DEFAULTS["max_loss"],
        help="points that a skip list may cost where it is chosen",
    )
    parser.add_argument("--no-menu", action="store_true", help="do not put the presets into ComfyUI's user folder")


def _choices(known: tuple[str, ...]):
    def read(text: str) -> tuple[str, ...]:
        words = tuple(dict.fromkeys(filter(None, re.split(r"[\s,]+", text))))
        unknown = [word for word in words if word not in known]
        if unknown or not words:
            raise argparse.ArgumentTypeError(f"{(unknown or [text])[0]!r} is none of {', '.join(known)}")
        return words

    return read


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _positive(text: str) -> int:
    if not _count(text):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return int(text)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return value


def _size(text: str) -> float:
    size = _finite(text)
    if not 0 <= size < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return size


def _batch(text: str) -> int:
    from .engine.host import MOST_PROMPTS

    if not 1 <= _count(text) <= MOST_PROMPTS:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to {MOST_PROMPTS}")
    return int(text)


def _strengths(text: str) -> tuple[float, ...]:
    try:
        values = tuple(dict.fromkeys(float(word) for word in re.split(r"[\s,]+", text) if word))
    except ValueError:
        values = ()
    if not values or not all(0 <= value <= MOST_STRENGTH for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers from 0 to {MOST_STRENGTH:g}, as 1.5,2")
    if any(float(f"{value:g}") != value for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: a control's name has six digits of a strength. Write fewer")
    return values
