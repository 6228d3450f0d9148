"""Peak memory of a training step of TiSASRec against the direct formula: batch 128, rows of 200, d 50.

Run: ``python -m benchmarks.tisasrec_memory`` (about two minutes on two cores). Writes ``sasrec-tisasrec-memory.json``.

The peer is the published computation restated in plain PyTorch, with the weights and the loss of our model: rows padded
to 200, a vector for each pair of events in keys and in values, both ``[B, L, L, C]``, shared by all blocks, dropout on
both. Ours is the project's layer, whose rows are all 200 long here, so that nothing is saved on padding.

Memory is the process' own: each case runs in a fresh process, which takes a step of a small batch first, resets the
kernel's high-water mark (``/proc/self/clear_refs``), takes one step forward and backward and reads ``VmHWM``. What was
resident before (weights, batch, libraries) is subtracted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.loss_memory import status_bytes
from benchmarks.result_file import RESULTS, write_result
from models.batch import SequenceBatch
from models.layers.interval_attention import interval_buckets
from models.losses import LossOptions
from models.tasks import LossOutput
from models.tisasrec import TiSASRec, TiSASRecOptions

ROWS, LENGTH, WIDTH, ITEMS, SPAN = 128, 200, 50, 3_416, 256
COMMAND = "python -m benchmarks.tisasrec_memory"
SEEDS = 3


class DirectTiSASRec(nn.Module):
    """The published computation with the parameters of ``task``, on rows of one length.

    Args:
        task: our model, norm ``query``; its parameters are shared, not copied.
    """

    def __init__(self, task: TiSASRec) -> None:
        super().__init__()
        self.task = task

    def token_states(self, batch: SequenceBatch) -> Tensor:
        """States ``[T, C]``."""
        task, options, rows = self.task, self.task.options, batch.num_rows
        x = task.item_embedding(batch.items).view(rows, -1, options.hidden)
        x = task.dropout(x * math.sqrt(options.hidden) if options.scale_embedding else x)  # [B, L, C]
        places = task.position_keys.places(batch.offsets, batch.num_tokens).view(rows, -1)
        buckets = interval_buckets(batch.timestamps.view(rows, -1), options.time_span, options.time_unit)
        tables = (
            task.dropout(task.position_keys(places)),  # [B, L, C]
            task.dropout(task.position_values(places)),
            task.dropout(task.interval_keys(buckets)),  # [B, L, L, C]
            task.dropout(task.interval_values(buckets)),
        )
        for block in task.blocks:
            query = block.attention_residual.norm(x)
            x = query + self.attention(block.attention, query, x, tables)
            x = block.feed_forward_residual.norm(x)
            x = x + block.feed_forward(x)
        return task.output_norm(x).flatten(0, 1)

    def attention(self, layer: nn.Module, query: Tensor, context: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
        """``[B, L, C]``; the heads are split along the columns and stacked along the rows."""
        heads: int = layer.heads  # type: ignore[assignment]
        q, k, v = layer.q_proj(query), layer.k_proj(context), layer.v_proj(context)  # type: ignore[operator]

        def split(x: Tensor) -> Tensor:
            return torch.cat(x.split(x.shape[-1] // heads, dim=-1), dim=0)

        q, k, v, (pk, pv, rk, rv) = split(q), split(k), split(v), (split(table) for table in tables)
        scores = q @ k.transpose(1, 2) + q @ pk.transpose(1, 2) + (rk @ q[..., None]).squeeze(-1)
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        weights = (scores / math.sqrt(q.shape[-1])).masked_fill(future, -(2.0**32) + 1).softmax(-1)
        weights = functional.dropout(weights, layer.dropout, self.training)  # type: ignore[arg-type]
        out = weights @ v + weights @ pv + (weights[:, :, None] @ rv).squeeze(2)
        return torch.cat(out.split(len(query), dim=0), dim=-1)

    def loss(self, batch: SequenceBatch) -> LossOutput:
        """The loss of our model on these states."""
        states, task = self.token_states(batch), self.task
        negatives = torch.randint(1, task.num_items + 1, (len(states),))
        target, negative = (
            (states * task.item_embedding(items)).sum(-1) for items in (batch.targets, negatives)
        )  # [T]
        return LossOutput((functional.softplus(-target) + functional.softplus(negative)).sum() / 2, len(states))


def batch_of(rows: int, length: int, items: int, seed: int) -> SequenceBatch:
    """Random histories of equal length."""
    random = torch.Generator().manual_seed(seed)
    tokens = rows * length
    gaps = torch.randint(0, 50_000, (rows, length), generator=random)
    drawn = torch.randint(1, items + 1, (2, tokens), generator=random)
    return SequenceBatch(
        offsets=torch.arange(rows + 1) * length,
        items=drawn[0],
        timestamps=gaps.cumsum(1).flatten(),
        targets=drawn[1],
        request_time=torch.zeros(rows, dtype=torch.int64),
        user_index=torch.arange(rows),
        all_targets=True,
    )


def model_of(name: str, length: int, width: int = WIDTH) -> TiSASRec | DirectTiSASRec:
    """``ours`` or ``direct``, in training mode; binary cross-entropy with one negative, as the paper trains."""
    torch.manual_seed(0)
    options = TiSASRecOptions(
        hidden=width,
        heads=1,
        max_length=length,
        time_span=SPAN,
        loss=LossOptions(name="bce", num_negatives=1),
    )
    task = TiSASRec(ITEMS, options)
    return (task if name == "ours" else DirectTiSASRec(task)).train()


def measure(name: str, rows: int, length: int, seed: int) -> int:
    """Bytes that one step needed at its peak, in this process."""
    model = model_of(name, length)
    model.loss(batch_of(2, length, ITEMS, seed)).sum.backward()  # type: ignore[operator]
    model.zero_grad(set_to_none=False)  # the gradients of the parameters stay, before and after
    batch = batch_of(rows, length, ITEMS, seed)
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    model.loss(batch).sum.backward()  # type: ignore[operator]
    return status_bytes("VmHWM") - before


def in_fresh_process(name: str, rows: int, length: int, seed: int) -> int:
    """:func:`measure` in a process of its own, whose malloc gives freed blocks back at once."""
    command = [sys.executable, "-m", "benchmarks.tisasrec_memory", "--measure", name, *map(str, (rows, length, seed))]
    frugal = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **frugal})
    return int(json.loads(done.stdout))


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs=4, metavar=("NAME", "ROWS", "LENGTH", "SEED"), help="one case, here")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    options = parser.parse_args(arguments)
    if options.measure:
        name, *sizes = options.measure
        print(measure(name, *map(int, sizes)))
        return
    print(COMMAND, flush=True)
    runs: dict[str, list[int]] = {"ours": [], "direct": []}
    for seed in range(SEEDS):
        for name, values in runs.items():
            values.append(in_fresh_process(name, options.rows, options.length, seed))
            print(f"{name}: {values[-1] / 2**20:,.0f} MiB", flush=True)
    ours, direct = (statistics.median(runs[name]) for name in ("ours", "direct"))
    share = ours / direct
    path = write_result(
        claim="sasrec-tisasrec-memory",
        value=round(share, 4),
        unit=f"of the direct formula's peak memory in a training step, batch {options.rows}, L {options.length}, "
        f"d {WIDTH}, 2 blocks, 1 head, time span {SPAN}, on a CPU: {ours / 2**20:,.0f} MiB, median of {SEEDS}",
        target="< 0.1",
        met=share < 0.1,
        peer=f"the published computation restated ([B, L, L, C] twice) with the same weights, loss and batch: "
        f"{direct / 2**20:,.0f} MiB",
        command=COMMAND,
        runs={"bytes": runs, "rows": options.rows, "length": options.length, "d": WIDTH},
        folder=options.out,
    )
    print(f"{path.name}: {share:.3f} (target < 0.1)")


if __name__ == "__main__":
    main()
