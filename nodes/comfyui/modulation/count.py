"""What a run's modulation table did, in numbers and in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModulationCount:
    """What a run's table did.

    Fields: served, calls without a modulation layer; computed, other calls by reason; rows, of layers' inputs, that
    were computed for the table; bytes, the most that it held.
    """

    served: int = 0
    computed: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it, with the words."""
        counts = {"served": self.served, "computed": dict(self.computed), "rows": self.rows, "bytes": self.bytes}
        return {**counts, "words": str(self)}

    def __str__(self) -> str:
        """In words."""
        calls = self.served + sum(self.computed.values())
        said = f"Modulation: {self.served} of {calls} model calls from the table, {self.rows} rows computed for it"
        reasons = "; ".join(f"{count} calls: {reason}" for reason, count in self.computed.items())
        return f"{said}, at most {self.bytes / 1e6:.1f} MB" + (f". Computed in the call: {reasons}" if reasons else "")
