"""One block control of a study as a value with a name, and the node that carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ACTIONS = ("skip", "disable", "boost")
NODES = {"skip": "BlockSkip", "disable": "TextDisable", "boost": "TextBoost"}
BASELINE = "baseline"


@dataclass(frozen=True, order=True)
class Control:
    """Skip blocks, disable their text from there on, or boost it, on one branch and in all steps.

    Fields: action, of ACTIONS; blocks, global numbers in order; branch, "positive", "negative" or "both"; mode and
    strength, of a boost, see TextBoost.
    """

    action: str
    blocks: tuple[int, ...]
    branch: str = "both"
    mode: str = ""
    strength: float = 1.0

    @property
    def name(self) -> str:
        """Its name in every file of a study, such as "boost value x1.5 both 2,3"."""
        words = [self.action, *([self.mode, f"x{self.strength:g}"] if self.action == "boost" else []), self.branch]
        return " ".join([*words, self.block_text.replace(" ", "")])

    @property
    def block_text(self) -> str:
        """Its blocks as the nodes take them."""
        return ", ".join(map(str, self.blocks))

    def widgets(self) -> dict[str, Any]:
        """The values of its node's widgets that differ from control to control."""
        values: dict[str, Any] = {"blocks": self.block_text, "branch": self.branch}
        return {**values, "strength": self.strength, "mode": self.mode} if self.action == "boost" else values

    def node(self, model: list[Any]) -> dict[str, Any]:
        """Its node in ComfyUI's API format. Args: model, the link that it takes the MODEL from."""
        rest: dict[str, Any] = {"start_percent": 0.0, "end_percent": 1.0}
        if self.action == "boost":
            rest |= {"phrase": "", "part": "all", "fade": "constant"}
        elif self.action == "disable":
            rest |= {"scope": "onward"}
        return {"class_type": NODES[self.action], "inputs": {"model": model, **self.widgets(), **rest}}
