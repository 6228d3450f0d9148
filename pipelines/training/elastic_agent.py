"""torchrun, saying in one line what it says in pages. Run by launcher.py; its arguments are torchrun's."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)
from torch.distributed.run import get_args_parser, run

from pipelines.training.distributed import end_with_parent


def main(arguments: Sequence[str]) -> int:
    """Start the workers and watch over them.

    Returns:
        0 when all left on purpose, 1 when one failed once too often, 2 when the nodes did not meet, 128 + the signal's
        number after a signal.
    """
    end_with_parent()
    logging.getLogger("torch.distributed").setLevel(os.environ.get("LOGLEVEL", "ERROR"))
    options = get_args_parser().parse_args(arguments)
    try:
        run(options)  # type: ignore[no-untyped-call]
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        print(f"error: process {rank} failed ({how}), after {options.max_restarts} restarts", file=sys.stderr)
        return 1
    except RendezvousTimeoutError:
        print(f"error: not all {options.nnodes} nodes came to {options.rdzv_endpoint} in time", file=sys.stderr)
        return 2
    except (RendezvousConnectionError, RendezvousClosedError) as error:
        print(f"error: {options.rdzv_endpoint}: no meeting there ({error}). Is node 0 running?", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))  # until torchrun has its own handler
    sys.exit(main(sys.argv[1:]))
