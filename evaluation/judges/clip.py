"""The judge by CLIP: the similarity of image and caption."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..prompts import Prompt
from .base import Answer, JudgeError, Question, check_images
from .questions import whole_question

BATCH = 16
# What a folder must have -> patterns of its names. Without a vocabulary, transformers makes an empty tokenizer.
FILES = {
    "config.json": ("config.json",),
    "preprocessor_config.json": ("preprocessor_config.json", "processor_config.json"),
    "tokenizer.json or vocab.json": ("tokenizer.json", "vocab.json"),
    "model.safetensors": ("*.safetensors",),
}


class ClipJudge:
    """Scores an image by max(cos, 0) of CLIP's embeddings of image and caption, without a scale.

    Values of right images are far from 1, mostly 0.2 to 0.4: they compare settings with one model of CLIP.

    Args: folder of a CLIP model in the layout of transformers, with safetensors weights. Nothing is downloaded.
    Raises: JudgeError if the folder, its files or transformers are missing.
    """

    def __init__(self, folder: Path | None):
        if folder is None:
            raise JudgeError(f"the CLIP judge has no model: name a folder with {', '.join(FILES)}")
        missing = [what for what, found in FILES.items() if not any(list(folder.glob(name)) for name in found)]
        if missing:
            raise JudgeError(f"{folder} is not the folder of a complete CLIP model; it lacks {', '.join(missing)}")
        self.folder = folder
        self._loaded: tuple[Any, Any] | None = None
        _load(folder, weights=False)  # what is missing is reported before any image is made
        self.identity = f"clip, {folder.resolve().name}, files {_digest(folder)[:12]}, max(cos, 0)"

    def questions(self, prompt: Prompt) -> tuple[Question, ...]:
        """One question, about the whole text."""
        return (whole_question(prompt),)

    def answer(self, images: np.ndarray, prompts: Sequence[Prompt]) -> list[list[Answer]]:
        """The similarity of each image and its caption, of which CLIP reads the first 77 tokens."""
        check_images(images, prompts)
        values: list[float] = []
        for start in range(0, len(images), BATCH):
            values += self._values(images[start : start + BATCH], [p.text for p in prompts[start : start + BATCH]])
        return [[Answer(value)] for value in values]

    def _values(self, images: np.ndarray, texts: list[str]) -> list[float]:
        import torch

        if self._loaded is None:
            self._loaded = _load(self.folder, weights=True)
        processor, model = self._loaded
        length = model.config.text_config.max_position_embeddings
        inputs = processor(
            text=texts, images=list(images), return_tensors="pt", padding=True, truncation=True, max_length=length
        )
        with torch.inference_mode():
            output = model(**inputs.to(model.device))
        cosines = torch.nn.functional.cosine_similarity(output.image_embeds.float(), output.text_embeds.float())
        return [min(max(value, 0.0), 1.0) for value in cosines.tolist()]

    def __getstate__(self) -> dict[str, Any]:
        """Without the loaded model: another process loads its own."""
        return self.__dict__ | {"_loaded": None}


def _load(folder: Path, *, weights: bool) -> tuple[Any, Any]:
    """The processor, and the model if `weights`, from local files alone."""
    try:
        import torch
        from safetensors import SafetensorError
        from transformers import CLIPModel, CLIPProcessor
    except ImportError as error:
        raise JudgeError(f"the CLIP judge needs the package transformers: {error}") from None
    try:
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        if not weights:
            return processor, None
        # Without this the weights that a file lacks would be random, with a warning.
        model, info = cast(Any, CLIPModel).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        if info["missing_keys"]:
            raise ValueError(f"its weights lack {min(info['missing_keys'])}")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise JudgeError(f"{folder} is not a complete CLIP model: {str(error).splitlines()[0]}") from None
    return processor, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _digest(folder: Path) -> str:
    """A hash of the names and contents of a model's files."""
    digest = hashlib.sha256()
    for path in sorted(path for kind in ("*.json", "*.txt", "*.safetensors") for path in folder.glob(kind)):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
