"""`python -m benchmarks.products`: a linear layer's product in float32 as the pack takes it on AMD, and as torch does.

SD3.5 Medium's first MLP layer (1536 to 6144), in turns, on whatever processor is here. Rows: one or two of the pooled
text and timestep, 32 where modulation is computed ahead, 154 of the text, 1024 and 2048 of the picture with and without
CFG. Error: the largest one against float64, of the result's spread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mmdit_core.models import products  # noqa: E402

ROWS = (1, 2, 32, 154, 1024, 2048)
SIZES = (1536, 6144)
LAYERS = 4  # one after the other, so that no layer's weights wait in a cache


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    gains = ", ".join(sorted(str(dtype)[6:] for dtype in products.fast_dtypes())) or "nowhere"
    torch.manual_seed(0)
    layers = [nn.Linear(*SIZES) for _ in range(LAYERS)]
    ways = {"ours": products.product, "torch": nn.functional.linear}
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; the pack takes it here in: {gains}\n")
    print("| rows | ours, ms | torch's, ms | ours / torch's | error | torch's error |")
    print("| --- | --- | --- | --- | --- | --- |")
    for rows in ROWS:
        x = torch.randn(rows, SIZES[0])
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):  # the first warms up
            for name in list(ways)[:: 1 if turn % 2 else -1]:
                started = time.perf_counter()
                for layer in layers:
                    ways[name](x, layer.weight, layer.bias)
                seconds[name].append((time.perf_counter() - started) / LAYERS)
        ours, theirs = (each[1:] for each in seconds.values())
        weight, bias = layers[0].weight, layers[0].bias
        exact = nn.functional.linear(x.double(), weight.double(), bias.double())
        errors = [((way(x, weight, bias) - exact).abs().max() / exact.std()).item() for way in ways.values()]
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        times = " | ".join(f"{1000 * statistics.median(each):.1f}" for each in (ours, theirs))
        print(f"| {rows} | {times} | {ratio:.2f} | {errors[0]:.1e} | {errors[1]:.1e} |")


if __name__ == "__main__":
    main()
