"""The HSTU training scripts' command lines: ``python -m pipelines.compat.hstu COMMAND --gin-config-file F``.

COMMAND is ``pretrain_gr_retrieval`` or ``pretrain_gr_ranking``. The gin file becomes a recipe of this project, which
lies with the results in ``FOLDER/NAME/``: NAME is the file's, FOLDER its ``TrainerArgs.ckpt_save_dir``, else ``runs``.
Under torchrun the batch is shared among the processes that it has started. ``--resume never`` (this project's) starts a
run anew; otherwise it goes on where it was. ``recpod run F.gin`` does the same, alone or under entrypoints/launch.sh.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines import cli
from pipelines.compat.hstu.translate import TASKS, to_config, translate
from pipelines.compat.hstu.translation import Translation
from pipelines.compat.sasrec_flags import Parser
from pipelines.compat.sasrec_processes import run_as_worker
from pipelines.config import RunConfig
from pipelines.errors import ConfigError, RecPodError, nearest
from pipelines.run_folder import RunFolder
from pipelines.training.checkpoint import checkpoint_steps


def main(arguments: Sequence[str]) -> int:
    """Translate, run, and give the code to leave with."""
    try:
        return _main(arguments)
    except RecPodError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _main(arguments: Sequence[str]) -> int:
    script = arguments[0].removesuffix(".py") if arguments else ""
    if script not in TASKS:
        what = f"unknown script '{script}'. {nearest(script, TASKS)}" if script else "no script is named"
        raise ConfigError(what, fix=f"python -m pipelines.compat.hstu {'|'.join(TASKS)} --gin-config-file F")
    parser = Parser(prog=f"python -m pipelines.compat.hstu {script}", allow_abbrev=False)
    parser.add_argument("--gin-config-file", type=Path, required=True, help="required")
    parser.add_argument("--resume", default="auto", help="auto or never; default auto")
    asked = parser.parse_args(arguments[1:])
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    made = translate(asked.gin_config_file, TASKS[script], int(os.environ["WORLD_SIZE"]) if launched else 1)
    config = to_config(made)
    resume = _resume(made, config, asked.resume)
    if not launched or os.environ["RANK"] == "0":
        for note in made.notes:
            print(note, file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="recpod-gin-") as folder:
        recipe = Path(folder) / f"{config.recipe}.yaml"
        recipe.write_text(config.to_yaml(), encoding="utf-8")
        verb = ["run", str(recipe), "--resume", resume]
        if launched:
            return run_as_worker(verb, config.folder)
        try:
            cli.main(verb)
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def _resume(made: Translation, config: RunConfig, asked: str) -> str:
    """What ``--resume`` gets: the checkpoint that the file names, unless the run has one of its own.

    Raises:
        ConfigError: the file names one that is not there, or ``--resume`` says another thing.
    """
    if made.resume is None:
        return asked
    path, where = made.resume
    if asked == "never":
        raise ConfigError("cannot be honoured with --resume never", where=where, fix="leave one of them out")
    if checkpoint_steps(RunFolder(config.folder).checkpoints):
        made.notes.append(f"{where} is not used: the run goes on from its own checkpoint")
        return asked
    if not Path(path).is_dir():
        raise ConfigError(f"there is no folder '{path}'", where=where)
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
