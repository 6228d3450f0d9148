"""Everything a GPU has to show, in one call of under ten minutes: kernels, training speed, repeatability, convergence.

    benchmarks/gpu.sh [--store FOLDER] [--seconds 540]          (RECPOD_STORE and OUT do the same)

Needs torch and numpy alone (and triton, where its kernels shall run). Without ``--store`` (a sequence store's folder)
the data are made up and nothing converges to anything. Every part writes its file as soon as it is done:

* ``front-gpu-kernels``: every kernel path that runs here against the reference in float64, forward and backward, in
  float32 and bfloat16, on odd and on real shapes; the whole model; two equal runs; a resumed run.
* ``front-gpu-train-speed``: targets per second of the Trainer's step, by kernel path, batch and precision.
* ``sasrec-gpu-epoch-seconds``: SASRec and TiSASRec: checks, an ML-1M epoch, memory (benchmarks/gpu_sasrec.py);
  ``sasrec-gpu-resident-epoch-seconds``: the epoch with the events on the GPU and with batches from the host.
* ``sasrec-gpu-mhc-streams``, ``sasrec-gpu-interval-attention``: the Triton kernels' milliseconds and memory beside
  plain PyTorch's (benchmarks/gpu_kernels.py).
* what benchmarks/gpu_hstu.py measures, where it is there.
* ``gpu-convergence-aware.json`` (or blind), only with a store: the Trainer in the time that is left; what validation
  chose is tested.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_kernels, gpu_sasrec
from benchmarks.gpu_bench import LOADER, SEED, Bench, device_name, measure_speed
from benchmarks.gpu_checks import Check, kernel_checks, model_check, repeat_check, resume_check
from benchmarks.result_file import RESULTS, write_result
from benchmarks.synthetic_store import synthetic_store
from models.kernels import chosen_paths
from models.kernels.paths import PATHS, VARIABLE, missing
from models.ss4rec import SS4RecOptions
from pipelines.data.store import SequenceStore
from pipelines.evaluation.protocols import get_protocol
from pipelines.run_folder import commit
from pipelines.training.guards import GuardOptions
from pipelines.training.state import load_best
from pipelines.training.trainer import TrainingOptions

PARTS = ("checks", "speed", "kernels", "sasrec", "hstu", "converge")
EVALUATION_MARGIN = 45.0  # seconds kept for test and clean-up after a convergence run


def speed_part(bench: Bench, rows: tuple[int, ...], seconds: float) -> dict[str, dict[str, Any]]:
    """Every kernel path with the first batch size; the best also with larger batches and in float32."""
    device = bench.device.type
    runnable = [
        path.name for path in PATHS["diagonal_scan"] if missing(path, device) is None and path.name != "reference"
    ]
    forced = os.environ.pop(VARIABLE, None)
    found = {}
    try:
        for path in runnable:
            os.environ[VARIABLE] = path
            found[f"{path}, {rows[0]} rows"] = measure_speed(bench, f"{path}-{rows[0]}", rows[0], "auto", seconds)
        del os.environ[VARIABLE]
        for count in rows:
            for precision in ("auto", "float32"):
                name = f"best, {count} rows, {precision}"
                found[name] = measure_speed(bench, f"best-{count}-{precision}", count, precision, seconds)
                print(f"{name}: {found[name]['median']:,.0f} targets/s", flush=True)
    finally:
        os.environ.pop(VARIABLE, None)
        if forced is not None:
            os.environ[VARIABLE] = forced
    return found


def report_speed(bench: Bench, found: dict[str, dict[str, Any]], command: str, folder: Path) -> None:
    """The fastest of the recipe's batch size, against plain PyTorch on the same device."""
    device, plain = bench.device.type, next(v for k, v in found.items() if k.startswith("torch,"))
    ours = next(v for k, v in found.items() if k.startswith("best,") and k.endswith("auto"))
    write_result(
        claim=f"front-{'gpu' if device == 'cuda' else device}-train-speed",
        value=round(ours["median"]),
        unit=f"targets/s in training, SS4Rec, {bench.store.manifest['source']['name']}, "
        f"{ours['rows_per_batch']} rows a batch, {ours['steps_per_second']:.1f} steps/s, median",
        target=f"> {plain['median']:.0f} (plain PyTorch)",
        met=ours["median"] > plain["median"],
        peer=f"the kernels in plain PyTorch on the same device in the same run: {plain['median']:,.0f} targets/s",
        command=command,
        runs={"speeds": found, "paths": chosen_paths(device), "device": device_name(bench.device)},
        folder=folder,
    )


def check_part(bench: Bench, quick: bool) -> list[Check]:
    """Every check, each printed as it is done."""
    checks = []
    for check in (
        *kernel_checks(bench.device.type, quick),
        model_check(bench.task, bench.data(replace(bench.loader, rows_per_batch=4)), bench.device),
        repeat_check(lambda name: bench.trainer(name, bench.loader, training=TrainingOptions(deterministic=True))),
        resume_check(lambda name: bench.trainer(name, bench.loader, training=TrainingOptions(deterministic=True))),
    ):
        print(check.line(), flush=True)
        checks.append(check)
    torch.use_deterministic_algorithms(False)
    return checks


def report_checks(bench: Bench, checks: list[Check], command: str, folder: Path) -> bool:
    """The checks' result; whether all that could run have passed."""
    done = [check for check in checks if check.passed is not None]
    passed = sum(check.passed is True for check in done)
    write_result(
        claim=f"front-{'gpu' if bench.device.type == 'cuda' else bench.device.type}-kernels",
        value=passed,
        unit=f"of {len(done)} checks passed: every kernel path against the reference in float64, forward and "
        "backward; the whole model; a repeated and a resumed run bit by bit",
        target=f">= {len(done)}",
        met=passed == len(done),
        peer="the reference implementations, float64",
        command=command,
        runs={"checks": [vars(check) for check in checks], "device": device_name(bench.device)},
        folder=folder,
    )
    return passed == len(done)


def converge(bench: Bench, seconds: float, epochs: int) -> dict[str, Any]:
    """Train until ``seconds`` are over, patience runs out or ``epochs`` are done; test what validation chose."""
    trainer = bench.trainer(
        "convergence",
        bench.loader,
        training=TrainingOptions(epochs=epochs),
        guards=GuardOptions(max_hours=seconds / 3600),
    )
    curve: list[dict[str, float]] = []

    def validate() -> dict[str, float]:
        metrics = bench.ask(trainer.task, "valid", "loo-full-masked").metrics  # type: ignore[arg-type]
        curve.append({"epoch": trainer.state.epoch, "step": trainer.state.step, **metrics})
        print(
            f"epoch {trainer.state.epoch}: NDCG@10 {metrics['NDCG@10']:.4f}, HR@10 {metrics['HR@10']:.4f}", flush=True
        )
        return metrics

    trainer.validate = validate
    state = trainer.run()
    if state.best_step < 0:
        return {"ended": state.finished, "epochs": state.epoch, "note": "the time was over before the first validation"}
    load_best(trainer.task, trainer.checkpoints, state)
    tests = {name: bench.ask(trainer.task, "test", name) for name in ("loo-full-masked", "loo-full")}  # type: ignore[arg-type]
    masked = tests["loo-full-masked"]
    return {
        "protocol": get_protocol("loo-full-masked").describe(
            bench.store,
            bench.split,
            max_length=bench.loader.max_length,
            query_time=bench.options.query_time,
            validation="best NDCG@10 on validation, checked every epoch",
            seeds=[SEED],
            commit=commit(),
        ),
        "test": {name: result.metrics for name, result in tests.items()},
        "valid": curve,
        "best_step": state.best_step,
        "epochs": state.epoch,
        "seconds": round(state.seconds, 1),
        "ended": state.finished,
        "ranking_users_per_second": round(masked.num_queries / masked.rank_seconds),
        "encoding_users_per_second": round(masked.num_queries / masked.encode_seconds),
        "device": device_name(bench.device),
        "paths": chosen_paths(bench.device.type),
    }


def report_convergence(bench: Bench, end: float, epochs: int, out: Path) -> None:
    """Write what a training until ``end`` (of the monotonic clock) comes to, if there is time for one."""
    if (left := end - time.monotonic()) > 0:
        found = converge(bench, left, epochs)
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"gpu-convergence-{bench.options.query_time}.json"
        path.write_text(json.dumps(found, indent=2) + "\n")


def attempt(name: str, part: Callable[[], bool | None]) -> bool:
    """Whether a part went through with its checks; one that breaks says how, and the others go on."""
    try:
        return part() is not False
    except Exception:  # compilers and drivers raise what they like
        print(f"FAILED   {name}:\n{traceback.format_exc()}", flush=True)
        return False


def hstu_figures(out: Path) -> None:
    """HSTU's own figures, from a module that may not be there."""
    if importlib.util.find_spec("benchmarks.gpu_hstu") is None:
        print("benchmarks/gpu_hstu.py is not there: no figures of HSTU", flush=True)
        return
    importlib.import_module("benchmarks.gpu_hstu").figures(out)


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 when a check has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--store", type=Path, default=os.environ.get("RECPOD_STORE"), help="a sequence store's folder")
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=200, help="of the convergence run at most")
    parser.add_argument("--query-time", default="aware", choices=("aware", "blind"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for trials")
    parser.add_argument(
        "--out", type=Path, default=os.environ.get("OUT", RESULTS / "gpu"), help="folder of the results"
    )
    options = parser.parse_args(arguments)
    begin, out = time.monotonic(), Path(options.out)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --device cpu --quick tries the script out")
    command = "benchmarks/gpu.sh" + (" --store FOLDER" if options.store else "")
    sizes = SS4RecOptions(query_time=options.query_time)
    sizes = replace(sizes, hidden=16, s5_state=4, d_state=4) if options.quick else sizes
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        work = Path(folder)
        share = 0.003 if options.quick else 1.0
        store = SequenceStore.open(options.store) if options.store else synthetic_store(work / "store", share=share)
        loader = replace(LOADER, max_length=16, rows_per_batch=4) if options.quick else LOADER
        bench = Bench(options.device, store, sizes, work, loader)
        print(f"{device_name(bench.device)}, torch {torch.__version__}, {chosen_paths(options.device)}", flush=True)
        rows, seconds = ((4,), 0.1) if options.quick else ((128, 512, 2048), 5.0)
        parts: dict[str, Callable[[], bool | None]] = {
            "checks": lambda: report_checks(bench, check_part(bench, options.quick), command, out),
            "speed": lambda: report_speed(bench, speed_part(bench, rows, seconds), command, out),
            "sasrec": lambda: gpu_sasrec.figures(bench, command, out, quick=options.quick),
        }
        if options.device == "cuda":
            parts["kernels"] = lambda: gpu_kernels.figures(out, command)
            parts["hstu"] = lambda: hstu_figures(out)
        if options.store:
            end = begin + options.seconds - EVALUATION_MARGIN
            parts["converge"] = lambda: report_convergence(bench, end, options.epochs, out)
        passed = [attempt(name, part) for name, part in parts.items() if name in options.parts]
    print(f"{time.monotonic() - begin:.0f} s, results in {out}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    raise SystemExit(main())
