"""Does mHC keep a deep SASRec from collapsing? Depth x form x loss x seed, equal parameters, through the run's stages.

    python -m benchmarks.mhc_depth                                       # ML-100K, from inside the recbole wheel
    python -m benchmarks.mhc_depth --part 1/2 & python -m benchmarks.mhc_depth --part 2/2 & wait
    RECPOD_MIRROR=FOLDER python -m benchmarks.mhc_depth --dataset ml-1m --depths 2 4 8 16

Forms: ``post`` and ``pre``, a plain residual with LayerNorm behind the sum or before the layer; ``mhc-pre`` (the
paper's) and ``mhc-post``, the same with four streams. The routes of mHC are parameters: the plain forms get a
feed-forward layer that is wider by as many (see :func:`plain_inner`), so that all forms of a depth are equal to within
1%. All cells have the same epochs, learning rate and batches; the weights that are tested are those of the best
validation.

A cell has *collapsed* when its loss or gradient stopped being finite, or when its NDCG@10 is below 1.1 times that of
popularity in the same run: it ranks as if it had not read the history. Beside that stand the norm of the gradient of
every block before and after training, and how alike the states of different users are (mean cosine).

A finished cell is kept in its run folder (``cell.json``) and not run again; a stopped one goes on from its checkpoint.
The result ``sasrec-mhc-depth`` is written once all cells are there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.nn import functional

from benchmarks.result_file import RESULTS, write_result
from models.batch import SequenceBatch
from models.layers.hyper_connections import HyperConnection
from models.popularity import Popularity
from models.tasks import Retrieval
from pipelines import stages
from pipelines.config import RunConfig, load_config
from pipelines.data.loader import cut_windows, training_batches
from pipelines.errors import ConfigError, RecPodError, RunError
from pipelines.run_folder import RunFolder, read_json, write_json
from pipelines.runbook import RunChoices, session
from pipelines.training.signals import Interrupted

FORMS = {"post": ("post", False), "pre": ("pre", False), "mhc-post": ("post", True), "mhc-pre": ("pre", True)}
LOSSES = ("softmax", "sampled_softmax")
STREAMS = 4
COLLAPSED_BELOW = 1.1  # times popularity's NDCG@10
PROBED_ROWS = 64  # training windows on which gradients and states are looked at


@dataclass(frozen=True)
class Cell:
    """One training of the grid."""

    dataset: str
    loss: str
    form: str
    depth: int
    seed: int

    @property
    def name(self) -> str:
        """Of the run and its folder."""
        return f"{Path(self.dataset).stem}-{self.loss}-{self.form}-{self.depth}-seed-{self.seed}"


def plain_inner(hidden: int) -> int:
    """Width of a plain form's feed-forward layer: mHC's is ``hidden`` wide, and its routes cost what this adds."""
    routes = sum(p.numel() for p in HyperConnection(hidden, STREAMS, 20, 0.01).parameters())
    return hidden + round(2 * routes / (2 * hidden + 1))  # two sub-layers; a unit has a row, a column and a bias


def config_of(cell: Cell, options: argparse.Namespace) -> RunConfig:
    """The run of a cell: the plain recipe with everything that the study fixes."""
    norm, mhc = FORMS[cell.form]
    inner = options.hidden if mhc else plain_inner(options.hidden)
    loss = {"name": cell.loss} | ({"num_negatives": options.negatives} if cell.loss == "sampled_softmax" else {})
    values: dict[str, Any] = {
        "name": cell.name,
        "dataset.name": cell.dataset,
        "model": {"name": "sasrec", "hidden": options.hidden, "blocks": cell.depth, "norm": norm, "mhc": mhc}
        | {"mhc_expansion_rate": STREAMS, "feed_forward": inner, "max_length": options.length, "loss": loss},
        "loader": {"windows": "all", "max_length": options.length, "rows_per_batch": options.rows},
        "optimizer": {"lr": options.lr, "warmup_steps": options.warmup},
        "training": {"epochs": options.epochs, "eval_every": options.eval_every, "patience": 0, "keep": 1},
        "guards": {"stuck_epochs": 0, "max_grad_norm": 0.0},  # a collapse is what is looked for: let it run on
        "evaluation": {"protocol": "loo-full-masked", "also": [], "ks": [10]},
        "tracking": {"wandb": "off"},
        "seed": cell.seed,
        "device": "cpu",
        "runs": str(options.work / "runs"),
    }
    sets = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    return load_config("train", [*sets, *options.sets])


def probe(task: Retrieval, batch: SequenceBatch) -> dict[str, Any]:
    """Gradient norm of each block's layers (what all forms have), and how alike the newest states of the rows are."""
    task.train().zero_grad()
    torch.manual_seed(0)
    output = task.loss(batch)
    torch.autograd.backward(output.sum / output.count)
    blocks: Any = task.blocks
    norms = [_gradient_norm([block.attention, block.feed_forward]) for block in blocks]
    task.zero_grad()
    with torch.no_grad():
        states = functional.normalize(task.eval().encode(batch), dim=1)  # [U, D]
    alike, rows = states @ states.t(), len(states)
    return {"gradient_norms": norms, "state_cosine": round(float((alike.sum() - rows) / (rows * (rows - 1))), 4)}


def _gradient_norm(modules: Sequence[nn.Module]) -> float:
    grads = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
    return float(f"{torch.stack([grad.norm() for grad in grads]).norm():.4g}")


def run_cell(cell: Cell, config: RunConfig, console: Console) -> dict[str, Any]:
    """Train and evaluate one cell, or give what is kept of it."""
    folder = RunFolder(config.folder)
    kept = read_json(folder.path / "cell.json")
    identity = f"{config.identity()} {config.training.epochs}"
    if kept:
        if kept["identity"] != identity:
            fix = "give another --work, or delete the folder"
            raise RunError("this cell was run with other settings", where=str(folder.path), fix=fix)
        return kept
    begin = time.process_time()
    found = {"identity": identity, **vars(cell), **_trained(config, folder, console)}
    found["cpu_seconds"] = round(time.process_time() - begin, 1)
    write_json(folder.path / "cell.json", found)
    return found


def _trained(config: RunConfig, folder: RunFolder, console: Console) -> dict[str, Any]:
    prepared = stages.prepare(config)
    windows = cut_windows(prepared.store, prepared.split.train, config.loader.max_length, "newest")
    batch = next(iter(training_batches(prepared.store, windows, config.loader, seed=0, epoch=0)))
    fresh = stages.build_task(config, prepared)
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in fresh.parameters()), "before": probe(fresh, batch)}
    try:
        with session(config, RunChoices(preflight=False), console) as (prepared, here):
            task, state = stages.train(config, prepared, here)
    except RunError as error:
        if "is nan at step" not in str(error) and "is inf at step" not in str(error):
            raise
        return found | {"collapsed": True, "ended": str(error), "epoch_losses": epoch_losses(folder)}
    popular = Popularity(torch.from_numpy(stages.training_counts(prepared)))
    valid, test, popularity = (
        stages.ask(config, prepared, one, part).metrics
        for one, part in ((task.eval(), "valid"), (task, "test"), (popular, "test"))
    )
    return found | {
        "NDCG@10": test["NDCG@10"],
        "HR@10": test["HR@10"],
        "valid_NDCG@10": valid["NDCG@10"],
        "popularity_NDCG@10": popularity["NDCG@10"],
        "collapsed": test["NDCG@10"] < COLLAPSED_BELOW * popularity["NDCG@10"],
        "after": probe(task, batch),
        "epoch_losses": epoch_losses(folder),
        "best_step": state.best_step,
        "steps": state.step,
        "ended": state.finished,
    }


def epoch_losses(folder: RunFolder) -> list[float]:
    """The mean training loss of each epoch."""
    events = [json.loads(line) for line in folder.events.read_text(encoding="utf-8").splitlines()]
    return [round(event["train_loss"], 4) for event in events if event.get("kind") == "epoch"]


def summary(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a (loss, depth, form): means over seeds; a cell without a metric counts 0."""
    lines = []
    for loss, depth, form in sorted({(cell["loss"], cell["depth"], cell["form"]) for cell in cells}):
        own = [cell for cell in cells if (cell["loss"], cell["depth"], cell["form"]) == (loss, depth, form)]
        values = {key: [cell.get(key, 0.0) for cell in own] for key in ("NDCG@10", "HR@10", "valid_NDCG@10")}
        lines.append(
            {"loss": loss, "depth": depth, "form": form, "seeds": len(own), "parameters": own[0]["parameters"]}
            | {key: round(statistics.fmean(numbers), 4) for key, numbers in values.items()}
            | {"NDCG@10_stdev": round(statistics.stdev(values["NDCG@10"]), 4) if len(own) > 1 else None}
            | {"final_loss": _mean([cell["epoch_losses"][-1] for cell in own if cell["epoch_losses"]])}
            | {"collapsed": sum(cell["collapsed"] for cell in own)}
            | {"cpu_seconds": _mean([cell["cpu_seconds"] for cell in own])}
        )
    return lines


def _mean(numbers: Sequence[float]) -> float | None:
    return round(statistics.fmean(numbers), 4) if numbers else None


def best_at(lines: Sequence[dict[str, Any]], loss: str, depth: int, mhc: bool) -> dict[str, Any]:
    """The form with or without mHC that validation prefers there."""
    own = [line for line in lines if (line["loss"], line["depth"], FORMS[line["form"]][1]) == (loss, depth, mhc)]
    return max(own, key=lambda line: line["valid_NDCG@10"])


def report(cells: Sequence[dict[str, Any]], command: str, folder: Path) -> Path:
    """Write the result: mHC over plain at the greatest depth, the forms chosen on validation, mean over the losses."""
    lines = summary(cells)
    deepest, losses = max(line["depth"] for line in lines), sorted({line["loss"] for line in lines})
    pairs = [(best_at(lines, loss, deepest, True), best_at(lines, loss, deepest, False)) for loss in losses]
    ratio = statistics.fmean(mhc["NDCG@10"] / max(plain["NDCG@10"], 1e-9) for mhc, plain in pairs)
    counts = [
        f"{form} {sum(line['collapsed'] for line in own)} of {sum(line['seeds'] for line in own)}"
        for form in FORMS
        if (own := [line for line in lines if line["depth"] == deepest and line["form"] == form])
    ]
    spread = [max(same) / min(same) - 1 for same in _parameters_by_depth(lines)]
    return write_result(
        claim="sasrec-mhc-depth",
        value=round(ratio, 4),
        unit=f"times the plain model's test NDCG@10 (masked, blind, full ranking) at depth {deepest}, better form of "
        f"each by validation, mean over {' and '.join(losses)}, {cells[0]['dataset']}; collapsed at depth {deepest} "
        f"(NDCG@10 below {COLLAPSED_BELOW} x popularity's, or not finite): {', '.join(counts)}; parameters of one "
        f"depth differ by at most {max(spread):.2%}",
        target=">= 1",
        met=ratio >= 1,
        peer="; ".join(
            f"{mhc['loss']}: mHC ({mhc['form']}) {mhc['NDCG@10']:.4f}, plain ({plain['form']}) {plain['NDCG@10']:.4f}"
            for mhc, plain in pairs
        ),
        command=command,
        runs={"summary": lines, "cells": [{k: v for k, v in cell.items() if k != "identity"} for cell in cells]},
        folder=folder,
    )


def _parameters_by_depth(lines: Sequence[dict[str, Any]]) -> list[list[int]]:
    return [[line["parameters"] for line in lines if line["depth"] == depth] for depth in {x["depth"] for x in lines}]


def parse_part(text: str) -> tuple[int, int]:
    """``2/3`` as (2, 3).

    Raises:
        ConfigError: something else.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ConfigError(f"'{text}' is no part of a whole", where="--part", fix="give 1/2 or 2/2")
    return int(number), int(count)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k", help="a dataset's name (default %(default)s)")
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 8], help="blocks")
    parser.add_argument("--forms", nargs="+", choices=tuple(FORMS), default=["post", "pre", "mhc-pre"])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--eval-every", type=int, default=2, help="epochs between validations")
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--length", type=int, default=50, help="longest history")
    parser.add_argument("--rows", type=int, default=32, help="windows in a batch")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--negatives", type=int, default=256, help="of sampled_softmax")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="of all cells")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", default="1/1", help="run every n-th cell: 1/2 and 2/2 may run at a time")
    parser.add_argument("--work", type=Path, default=Path("build/mhc-depth"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, command: str) -> None:
    """Run this part's cells; write the result when all are there."""
    torch.set_num_threads(options.threads)
    number, count = parse_part(options.part)
    if len({FORMS[form][1] for form in options.forms}) < 2:
        raise ConfigError("nothing to compare", where="--forms", fix="give a plain form and one with mHC")
    # Seed by seed, so that a study that is cut short has whole tables of fewer seeds.
    cells = [
        Cell(options.dataset, loss, form, depth, seed)
        for seed in options.seeds
        for depth in options.depths
        for loss in options.losses
        for form in options.forms
    ]
    configs = [config_of(cell, options) for cell in cells]
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        for cell, config in list(zip(cells, configs, strict=True))[number - 1 :: count]:
            found = run_cell(cell, config, Console(file=nowhere))
            loss = found["epoch_losses"][-1] if found["epoch_losses"] else math.nan
            print(
                f"{cell.name}: NDCG@10 {found.get('NDCG@10', 0):.4f}, loss {loss:.3f}, {found['parameters']:,} "
                f"parameters, {found['cpu_seconds']} s{', collapsed' if found['collapsed'] else ''}",
                flush=True,
            )
    finished = [kept for config in configs if (kept := read_json(config.folder / "cell.json"))]
    if len(finished) == len(cells):
        print(report(finished, command, options.out))
    else:
        print(f"{len(finished)} of {len(cells)} cells are finished")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    words = sys.argv[1:] if arguments is None else arguments
    options = parse_arguments(arguments)
    shown = [word for word in words if not word.startswith(("--part", "--work", "--out"))]
    try:
        run(options, " ".join(["python -m benchmarks.mhc_depth", *shown]))
    except (RecPodError, Interrupted) as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
