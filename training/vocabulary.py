"""The tokens that captions can contain."""

from __future__ import annotations

import json
import random
from pathlib import Path

from attributes.world import sample_scene

from .captions import describe
from .tokens import CLIP_END, CLIP_START, CLIP_VOCABULARY, T5_END, T5_VOCABULARY, Tokenizer, Vocabulary


def vocabularies(run: Path, tokenizer: Tokenizer, captions: int = 20000) -> tuple[Vocabulary, Vocabulary]:
    """The vocabularies of CLIP and T5: read from the run's folder, or collected from many captions and stored there."""
    path = run / "vocabulary.json"
    if not path.exists():
        rng = random.Random("vocabulary")
        clip, t5 = {CLIP_START, CLIP_END, 0}, {T5_END, 0}
        for index in range(captions):
            words = describe(sample_scene(rng, held_out=index % 2 == 1), rng, complete=index % 4 == 1)
            first, second = tokenizer.caption(words)
            clip.update(first)
            t5.update(second)
        path.write_text(json.dumps({"clip": sorted(clip), "t5": sorted(t5)}))
    known = json.loads(path.read_text())
    return Vocabulary(known["clip"], CLIP_VOCABULARY), Vocabulary(known["t5"], T5_VOCABULARY)
