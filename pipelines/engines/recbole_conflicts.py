"""What is known to part RecBole from the packages beside it, told from their metadata: nothing is imported.

RecBole 1.2.1 was written for NumPy 1, pandas 1 and 2, ray 1 and 2, and a ``torch.load`` that takes pickles. What
:mod:`pipelines.engines.recbole_environment` puts right is ``ok`` here and says so; the rest fails where RecBole is to
train, and is only noted elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

from pipelines.machine import installed_version, read_pins
from pipelines.preflight import SET_UP, Check, Verdict, line, numbers

NEWEST_RAY = (2, 6, 3)  # that RecBole 1.2.1 allows
CAREFUL_LOAD = (2, 6)  # torch since when torch.load takes tensors alone
_CHECKED_APART = {"torch", "numpy", "pandas", "ray"}


def check_recbole(*, used: bool) -> Iterator[Check]:
    """A line for each known conflict; nothing where RecBole is neither installed nor asked for.

    Args:
        used: RecBole is to train, so that what breaks it is a failure.
    """
    found = installed_version("recbole")
    worst: Verdict = "fail" if used else "warn"
    if found is None:
        if used:
            yield Check("RecBole", "fail", "absent", remedy=f"install the extra `data`: {SET_UP}")
        return
    known = found == read_pins()["RECBOLE"]
    yield _numpy(worst)
    yield _pandas(worst)
    yield _requirements(worst)
    yield _kmeans()
    yield _ray()
    yield _torch_load(worst, known, found)


def _numpy(worst: Verdict) -> Check:
    """NumPy 2 has dropped ``np.float_`` and its like; they are put back before RecBole is loaded."""
    found = installed_version("numpy") or "absent"
    major = (*numbers(found), 0)[0]
    says = f"{found}: np.float_ and its like are put back" if major == 2 else found
    return line("RecBole: numpy", "ok" if major in (1, 2) else worst, says, f"install numpy 1 or 2: {SET_UP}")


def _pandas(worst: Verdict) -> Check:
    """Pandas 3 copies on write: where RecBole fills missing values of a column in place, nothing is filled."""
    found = installed_version("pandas") or "absent"
    major = (*numbers(found), 0)[0]
    says = f"{found}: what RecBole fills in place stays empty" if major >= 3 else found
    return line("RecBole: pandas", "ok" if major in (1, 2) else worst, says, f"pip install 'pandas<3', or {SET_UP}")


def _requirements(worst: Verdict) -> Check:
    """The other packages that RecBole imports."""
    names = [re.split(r"[^\w.-]", text.strip(), maxsplit=1)[0] for text in _required()]
    missing = [name for name in names if name not in _CHECKED_APART and installed_version(name) is None]
    says = f"missing: {', '.join(missing)}" if missing else "all"
    remedy = f"pip install {' '.join(missing)}, or {SET_UP}"
    return line("RecBole: packages", worst if missing else "ok", says, remedy)


def _required() -> list[str]:
    """RecBole's requirements but those of extras."""
    return [text for text in metadata.requires("recbole") or [] if "extra ==" not in text]


def _kmeans() -> Check:
    """kmeans-pytorch, which RecBole does not declare: its LDiffRec stops at an import, nothing else does."""
    found = installed_version("kmeans-pytorch")
    says = found or "absent: RecBole does not declare it, its LDiffRec needs it"
    return line("RecBole: kmeans-pytorch", "ok" if found else "warn", says, "pip install kmeans-pytorch")


def _ray() -> Check:
    """Ray, for tuning alone. Without it a module stands in that refuses to tune; RecBole imports it where it is."""
    found = installed_version("ray")
    if found is None:
        return Check("RecBole: ray", "ok", "absent: a module stands in; RecBole's tuning is refused")
    known = numbers(found) <= NEWEST_RAY
    says = found if known else f"{found}: RecBole allows 2.6.3 at most, and imports it"
    return line("RecBole: ray", "ok" if known else "warn", says, "pip uninstall ray: only RecBole's tuning needs it")


def _torch_load(worst: Verdict, known: bool, found: str) -> Check:
    """``torch.load`` without pickles, in which RecBole's checkpoints hold their configuration."""
    torch = installed_version("torch") or "absent"
    if numbers(torch)[:2] < CAREFUL_LOAD:
        return Check("RecBole: torch.load", "ok", f"torch {torch} takes pickles")
    says = (
        "RecBole's trainer gets a load that takes its own checkpoints" if known else f"not tried with RecBole {found}"
    )
    remedy = f"pip install recbole=={read_pins()['RECBOLE']}, or {SET_UP}"
    return line("RecBole: torch.load", "ok" if known else worst, says, remedy)
