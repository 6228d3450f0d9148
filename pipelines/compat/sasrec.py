"""The SASRec family's reference command lines: ``python -m pipelines.compat.sasrec main|main_distributed [FLAG...]``.

They become a recipe of this project, which lies with the results in ``DATASET_TRAINDIR/``, beside ``args.txt``,
``log.txt`` and ``step_log.csv``. ``main_distributed`` and ``--multi_gpu`` share the batch among processes: one a GPU,
or NUM_GPUS; under torchrun or torch.distributed.launch, as many as it has started. Data are text files
``data/DATASET.txt`` of ``user item``, ``user item timestamp`` or ``user item rating timestamp``, another data file, or
a dataset of this project. ``--resume never`` (this project's) starts a run anew; otherwise it goes on where it was.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from pipelines import cli
from pipelines.compat.sasrec_flags import Command, parse, translate
from pipelines.compat.sasrec_logs import log_line, write_log, write_logs
from pipelines.config import RunConfig, build_config
from pipelines.data.formats import detect_format
from pipelines.data.formats.raw import RawFile
from pipelines.errors import ConfigError, RecPodError
from pipelines.run_folder import write_text
from pipelines.training import launcher


def main(arguments: Sequence[str]) -> int:
    """Translate, run, and give the code to leave with."""
    try:
        command = parse(arguments)
        layers, notes = translate(command)
        if command.state_dict_path is not None:
            from pipelines.compat.sasrec_start import adapt

            notes += adapt(command, layers)
        config = build_config(layers)
        _check_times(config)
        if _rank() == 0:
            for note in notes:
                print(note, file=sys.stderr)
            write_text(command.folder / "args.txt", command.args_text())
        if command.inference_only:
            return _infer(command, config, notes)
        if command.state_dict_path is not None:
            _start_from(command, config)
        code = _run(command, config)
        if _rank() == 0:
            write_logs(command.folder, notes)
        return code
    except RecPodError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _check_times(config: RunConfig) -> None:
    """TiSASRec on a file without times would look at the places of events instead.

    Raises:
        ConfigError: see above.
    """
    path = Path(config.dataset.name)
    if config.model["name"] != "tisasrec" or not path.is_file() or detect_format(path) != "sasrec":
        return
    if path.suffix != ".zip" and len(RawFile(path).first_line().split()) == 2:
        raise ConfigError("the file has no timestamps, which TiSASRec reads", where=str(path), fix="add --no_time")


def _infer(command: Command, config: RunConfig, notes: Sequence[str]) -> int:
    """Evaluate weights, print and log the test metrics; one process does it."""
    if _rank() > 0:
        return 0
    from pipelines.compat.sasrec_start import evaluate_weights

    found = evaluate_weights(command, config)
    for protocol, metrics in found.items():
        print(f"test (NDCG@10: {metrics['NDCG@10']:.4f}, HR@10: {metrics['HR@10']:.4f}) {protocol}")
    write_log(command.folder, notes, [log_line(0, None, found[config.evaluation.protocol])])
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
            return _as_torchruns_child(verb, command.folder)
        flags = [f"--processes={os.environ.get('NUM_GPUS') or 'auto'}", "--", *verb]
        several = command.multi_gpu or command.script == "main_distributed"
        if several and launcher.parse(flags).processes > 1:
            return launcher.main(flags)
        try:
            cli.main(verb)
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def _as_torchruns_child(verb: Sequence[str], folder: Path) -> int:
    """The run as a child of this worker of torchrun's, in its place among the workers; this one writes what follows.

    torchrun itself knows success and failure alone: it reports any code but 0 as a failure.
    """
    code_file = (folder / f".exit-code-{os.environ['GROUP_RANK']}").absolute()  # one a node
    code_file.parent.mkdir(exist_ok=True)
    variables = {**os.environ, "RECPOD_EXIT_CODE_FILE": str(code_file)}
    child = subprocess.Popen([sys.executable, "-m", "pipelines", *verb], env=variables)

    def stop(number: int, frame: FrameType | None) -> None:
        child.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    code = child.wait()
    if code or not code_file.exists():
        return code or 1
    text = code_file.read_text(encoding="utf-8")
    if (line := text.partition("\n")[2].strip()) and os.environ["LOCAL_RANK"] == "0":
        print(line, file=sys.stderr)
    return int(text.split()[0])


def _launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _rank() -> int:
    return int(os.environ["RANK"]) if _launched() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
