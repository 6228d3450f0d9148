"""RecBole 1.2.1 beside newer packages: :func:`load_recbole` comes before any of its modules.

It needs three things that have gone since it was written. Nothing that it computes with is changed.

- names that NumPy 2 has dropped: ``np.float_`` and its like, and ``np.float``, which its metrics read before its
  configuration has put it back;
- ``ray.tune``, for tuning alone; without ray a module stands in whose ``report`` refuses to be called;
- ``torch.load`` of its own checkpoints, which hold its configuration as a pickle: only its trainer module gets a
  ``load`` that takes them, and such a file is as trusted as a program.

RecBole also reads the program's command line, sets CUDA_VISIBLE_DEVICES and writes tensorboard logs beside the working
directory; :func:`undisturbed` keeps it from that.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.errors import MachineError

_NUMPY_NAMES: dict[str, type] = {
    "float_": np.float64,
    "complex_": np.complex128,
    "unicode_": np.str_,
    "float": np.float64,
}


def load_recbole() -> None:
    """Make RecBole importable; may be called any number of times.

    Raises:
        MachineError: RecBole, or a package that it needs, is not installed.
    """
    for name, type_ in _NUMPY_NAMES.items():
        if name not in np.__dict__:
            setattr(np, name, type_)
    if "ray" not in sys.modules and importlib.util.find_spec("ray") is None:
        _stand_in_for_ray()
    anomalies = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    try:
        import recbole.model.sequential_recommender
        import recbole.quick_start  # noqa: F401
        import recbole.trainer.trainer as trainer
    except ModuleNotFoundError as error:
        fix = "install the extra `data`: ./entrypoints/setup.sh"
        raise MachineError(f"the engine recbole needs the package {error.name}", where="engine", fix=fix) from error
    finally:  # its file sine.py switches anomaly detection on for the whole process, which slows every backward pass
        torch.autograd.set_detect_anomaly(*anomalies)
    if not isinstance(trainer.torch, _TrustingTorch):
        trainer.torch = _TrustingTorch("torch")


@contextlib.contextmanager
def undisturbed(logs: Path | None = None) -> Iterator[None]:
    """A context in which RecBole reads no command line and leaves no trace outside ``logs``.

    Args:
        logs: folder for its tensorboard files; None lets it write where it likes.
    """
    import recbole.trainer.trainer as trainer
    from torch.utils.tensorboard import SummaryWriter

    arguments, visible, tensorboard = sys.argv, os.environ.get("CUDA_VISIBLE_DEVICES"), trainer.get_tensorboard
    sys.argv = arguments[:1]
    if logs is not None:
        trainer.get_tensorboard = lambda logger: SummaryWriter(str(logs))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", category=FutureWarning, module=r"recbole\."
            )  # what newer packages advise it
            yield
    finally:
        sys.argv, trainer.get_tensorboard = arguments, tensorboard
        if visible is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible


class _TrustingTorch(types.ModuleType):
    """The module torch, but for a ``load`` that takes pickles."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(*arguments: Any, **options: Any) -> Any:
        """``torch.load`` with ``weights_only=False`` unless it is given."""
        return torch.load(*arguments, **{"weights_only": False, **options})


def _stand_in_for_ray() -> None:
    def report(*arguments: Any, **values: Any) -> None:
        raise MachineError("tuning with RecBole needs the package ray", where="ray.tune", fix="pip install ray")

    ray, tune = (types.ModuleType(name) for name in ("ray", "ray.tune"))
    for module in (ray, tune):
        module.__spec__ = ModuleSpec(module.__name__, loader=None)
    ray.tune, tune.report = tune, report  # type: ignore[attr-defined]
    sys.modules.update({"ray": ray, "ray.tune": tune})


def sequential_models() -> list[str]:
    """The names of RecBole's own sequential models."""
    import recbole.model.sequential_recommender as models

    return sorted(name for name, value in vars(models).items() if isinstance(value, type))


def loss_type(model: str) -> str | None:
    """The default ``loss_type`` of a RecBole model; None for one that has none."""
    import recbole
    import yaml

    path = Path(recbole.__file__).parent / "properties" / "model" / f"{model}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    found = (values or {}).get("loss_type")
    return None if found is None else str(found)
