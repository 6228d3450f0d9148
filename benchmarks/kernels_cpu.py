"""Microseconds a token and layer of every kernel path on the CPU: ``python -m benchmarks.kernels_cpu``.

Rows as ML-1M gives them (up to 200 tokens), sizes of the paper's configuration. The smallest of several runs is shown:
what the code needs when nobody else uses the cores. ``cpu`` is processor time, forward and backward, of all threads
together: it holds on a busy machine too. ``--json`` prints every run.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from models.kernels import causal_conv, diagonal_scan, selective_scan
from models.kernels.check import example
from models.kernels.paths import PATHS, missing

OPS = {"selective_scan": selective_scan, "diagonal_scan": diagonal_scan, "causal_conv": causal_conv}
WIDTHS = {"selective_scan": (128, 32), "diagonal_scan": (32, 0), "causal_conv": (128, 4)}


def row_lengths(tokens: int) -> list[int]:
    """Row lengths between 20 and 200, half of them 200 (truncated histories), ``tokens`` in all."""
    random, lengths = torch.Generator().manual_seed(0), []
    while (left := tokens - sum(lengths)) > 0:
        length = 200 if len(lengths) % 2 else int(torch.randint(20, 200, (), generator=random))
        lengths.append(min(length, left))
    return lengths


def measure(op: str, path: str, tokens: int, runs: int) -> dict[str, list[float]]:
    """Microseconds a token of each run; the first one, which compiles and allocates, is left out."""
    *inputs, offsets = example(op, row_lengths(tokens), *WIDTHS[op])
    leaves = [v.requires_grad_(not (op == "diagonal_scan" and place == 1)) for place, v in enumerate(inputs)]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    results: dict[str, list[float]] = {"forward": [], "backward": [], "cpu": []}
    for _ in range(runs + 1):
        cpu, begin = time.process_time(), time.perf_counter()
        out = OPS[op](*inputs, offsets, path=path)
        ones, middle = torch.ones_like(out), time.perf_counter()
        torch.autograd.grad(out, leaves, ones)
        results["forward"].append((middle - begin) / tokens * 1e6)
        results["backward"].append((time.perf_counter() - middle) / tokens * 1e6)
        results["cpu"].append((time.process_time() - cpu) / tokens * 1e6)
    return {name: values[1:] for name, values in results.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--paths", default="numba,torch,reference")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {}
    for op, paths in PATHS.items():
        for path in paths:
            if path.name in options.paths.split(",") and missing(path, "cpu") is None:
                runs = options.runs if path.name == "numba" else min(options.runs, 3)
                results[f"{op}/{path.name}"] = measure(op, path.name, options.tokens, runs)
    if options.json:
        print(json.dumps({"tokens": options.tokens, "threads": torch.get_num_threads(), "microseconds": results}))
        return
    print(f"{'op/path':<28}{'forward':>10}{'backward':>10}{'cpu':>10}   us a token, {torch.get_num_threads()} threads")
    for name, runs in results.items():
        print(f"{name:<28}{min(runs['forward']):>10.3f}{min(runs['backward']):>10.3f}{min(runs['cpu']):>10.3f}")


if __name__ == "__main__":
    main()
