"""The SASRec family's reference command lines: ``python -m pipelines.compat.sasrec COMMAND [FLAG...]``.

``convert_ml1m`` and ``test_distributed`` are in sasrec_text.py and sasrec_processes.py. ``main`` and
``main_distributed`` become a recipe of this project, which lies with the results in ``DATASET_TRAINDIR/``, beside
``args.txt``, ``log.txt`` and ``step_log.csv``. ``main_distributed`` and ``--multi_gpu`` share the batch among
processes: one a GPU, or NUM_GPUS; under torchrun or torch.distributed.launch, as many as it has started. Data are text
files ``data/DATASET.txt`` of ``user item``, ``user item timestamp`` or ``user item rating timestamp``, another data
file, or a dataset of this project. ``--resume never`` (this project's) starts a run anew; otherwise it goes on where it
was.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines import cli
from pipelines.compat.sasrec_flags import Command, parse, translate
from pipelines.compat.sasrec_logs import add_to_log, log_line, write_logs
from pipelines.compat.sasrec_processes import (
    leave_after_the_first,
    run_as_worker,
    test_distributed,
    wanted_processes,
)
from pipelines.compat.written import checked_recipe
from pipelines.config import RunConfig
from pipelines.data.formats import detect_format
from pipelines.data.formats.raw import RawFile
from pipelines.errors import ConfigError, RecPodError
from pipelines.run_folder import RunFolder, write_text
from pipelines.training import launcher


def main(arguments: Sequence[str]) -> int:
    """Run the command, and give the code to leave with."""
    arguments, line = _command_first(arguments), ""
    try:
        code = _COMMANDS.get(arguments[0].removesuffix(".py") if arguments else "", _main)(arguments)
    except RecPodError as error:
        code, line = error.exit_code, f"error: {error}"
    if code in (RecPodError.exit_code, launcher.STOPPED) and _rank() > 0:
        leave_after_the_first()
    if line:
        print(line, file=sys.stderr)
    return code


def _command_first(arguments: Sequence[str]) -> Sequence[str]:
    """The rank that torch.distributed.launch puts in front of everything, behind the command."""
    if not arguments or arguments[0].partition("=")[0] not in ("--local-rank", "--local_rank"):
        return arguments
    words = 1 if "=" in arguments[0] else 2
    return [*arguments[words:], *arguments[:words]]


def _convert(arguments: Sequence[str]) -> int:
    from pipelines.compat.sasrec_text import convert_ml1m

    return convert_ml1m(arguments[1:])


def _test(arguments: Sequence[str]) -> int:
    return test_distributed(arguments[1:])


_COMMANDS = {"convert_ml1m": _convert, "test_distributed": _test}


def _main(arguments: Sequence[str]) -> int:
    """``main`` and ``main_distributed``: translate and run."""
    command = parse(arguments)
    layers, notes = translate(command)
    if command.state_dict_path is not None:
        from pipelines.compat.sasrec_start import adapt

        notes += adapt(command, layers)
    config = checked_recipe(layers)
    _check_columns(config)
    if _rank() == 0:
        for note in notes:
            print(note, file=sys.stderr)
    if command.inference_only:
        return _infer(command, config, notes)
    if command.state_dict_path is not None:
        _start_from(command, config)
    before = _accepted(command)
    code = _run(command, config)
    if _rank() == 0 and _accepted(command) != before:
        write_text(command.folder / "args.txt", command.args_text())
        write_logs(command.folder, notes)
    return code


def _accepted(command: Command) -> tuple[int, int] | None:
    """Tells one writing of the run's config.yaml from the next: a run that is refused does not come so far."""
    path = RunFolder(command.folder).config
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.is_file() else None


def _check_columns(config: RunConfig) -> None:
    """Refuse a text file whose columns would be taken for others.

    TiSASRec on a file without times would look at the places of events; a rating where the time belongs would order
    every history by stars.

    Raises:
        ConfigError: see above.
    """
    path = Path(config.dataset.name)
    if not path.is_file() or path.suffix == ".zip" or detect_format(path) != "sasrec":
        return
    fields = RawFile(path).first_line().split()
    if config.model["name"] == "tisasrec" and len(fields) == 2:
        raise ConfigError("the file has no timestamps, which TiSASRec reads", where=str(path), fix="add --no_time")
    if len(fields) == 4 and _stars(fields[3]) and not _stars(fields[2]):
        what = "the order looks like 'user item timestamp rating'"
        raise ConfigError(what, where=f"{path}:1", fix="four columns are read as 'user item rating timestamp'")


def _stars(text: str) -> bool:
    """Whether a field may be a rating rather than a time: a number up to 100."""
    try:
        return abs(float(text)) <= 100
    except ValueError:
        return False  # the reader names the line


def _infer(command: Command, config: RunConfig, notes: Sequence[str]) -> int:
    """Evaluate weights, print and log the test metrics; one process does it."""
    if _rank() > 0:
        return 0
    from pipelines.compat.sasrec_start import evaluate_weights

    found = evaluate_weights(command, config)
    for protocol, metrics in found.items():
        print(f"test (NDCG@10: {metrics['NDCG@10']:.4f}, HR@10: {metrics['HR@10']:.4f}) {protocol}")
    write_text(command.folder / "args.txt", command.args_text())
    add_to_log(command.folder, notes, log_line(0, None, found[config.evaluation.protocol]))
    return 0


def _start_from(command: Command, config: RunConfig) -> None:
    if _launched():
        what = "cannot be honoured under torchrun, whose processes would all write the first checkpoint"
        raise ConfigError(what, where="--state_dict_path", fix="use --multi_gpu without torchrun")
    if command.resume != "auto":
        raise ConfigError(f"cannot be honoured with --resume {command.resume}", where="--state_dict_path")
    from pipelines.compat.sasrec_start import start_from

    if not start_from(command, config):
        print("--state_dict_path is not used: the run goes on from its own checkpoint", file=sys.stderr)


def _run(command: Command, config: RunConfig) -> int:
    """Train and evaluate, in one process or several; the code to leave with."""
    with tempfile.TemporaryDirectory(prefix="recpod-sasrec-") as folder:
        recipe = Path(folder) / "sasrec.yaml"
        recipe.write_text(config.to_yaml(), encoding="utf-8")
        verb = ["run", str(recipe), "--resume", command.resume]
        if _launched():
            return run_as_worker(verb, command.folder)
        flags = [f"--processes={wanted_processes() or 'auto'}", "--", *verb]
        several = command.multi_gpu or command.script == "main_distributed"
        if several and launcher.parse(flags).processes > 1:
            return launcher.main(flags)
        try:
            cli.main(verb)
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def _launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _rank() -> int:
    return int(os.environ.get("RANK", "0")) if _launched() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
