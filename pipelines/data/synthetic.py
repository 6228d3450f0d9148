"""Made-up data for benchmarks: users, items and actions drawn from distributions; no file is needed.

A description (a JSON file) says what to draw. The same description gives the same events, on any machine: they come
from numpy's own generator, seeded by ``seed``.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from pipelines.errors import ConfigError, DataError, nearest

KINDS = ("uniform", "normal", "zipf", "lognormal")
SECONDS_APART = 60
START = 1_600_000_000


@dataclass(frozen=True)
class Distribution:
    """Whole numbers from ``low``, below ``high``.

    Attributes:
        kind: ``uniform``; ``normal`` and ``lognormal`` (rounded and clamped); ``zipf``: ``low`` is the likeliest, the
            ``k``-th number has a probability proportional to ``k ** -alpha``, what lies beyond ``high`` is clamped.
        low: smallest number.
        high: numbers are below it; None: no bound (not for ``uniform``).
        mean: of ``normal`` and ``lognormal``, of the numbers themselves rather than of their logarithms.
        std: likewise; ``lognormal`` takes half the mean where it is None.
        alpha: above 1; None: 1.5.
    """

    kind: str
    low: int = 0
    high: int | None = None
    mean: float | None = None
    std: float | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn from."""
        if self.kind not in KINDS:
            raise ConfigError(f"unknown distribution '{self.kind}'", fix=nearest(self.kind, KINDS))
        if self.low < 0 or (self.high is not None and self.high <= self.low):
            raise ConfigError(f"no whole number lies from {self.low} to below {self.high}")
        if self.kind == "uniform" and self.high is None:
            raise ConfigError("a uniform distribution needs 'high'")
        if self.kind in ("normal", "lognormal") and self.mean is None:
            raise ConfigError(f"a {self.kind} distribution needs 'mean'")
        if self.kind == "lognormal" and self.mean is not None and self.mean <= 0:
            raise ConfigError(f"the mean of a lognormal distribution is above 0, not {self.mean}")
        if self.kind == "normal" and self.std is None:
            raise ConfigError("a normal distribution needs 'std'")
        if self.std is not None and self.std <= 0:
            raise ConfigError(f"a standard deviation is above 0, not {self.std}")
        if self.alpha is not None and self.alpha <= 1:
            raise ConfigError(f"alpha of a zipf distribution is above 1, not {self.alpha}")

    def draw(self, generator: np.random.Generator, size: int) -> np.ndarray:
        """``size`` numbers, ``[size]`` int64."""
        if self.kind == "uniform":
            assert self.high is not None
            return generator.integers(self.low, self.high, size)
        if self.kind == "zipf":
            drawn = generator.zipf(1.5 if self.alpha is None else self.alpha, size)
            drawn = np.minimum(drawn, 2**62) + (self.low - 1)
        else:
            drawn = np.rint(self._real(generator, size)).clip(0, 2**62).astype(np.int64)
        return drawn.clip(self.low, None if self.high is None else self.high - 1)

    def _real(self, generator: np.random.Generator, size: int) -> np.ndarray:
        mean = self.mean or 0.0
        if self.kind == "normal":
            return generator.normal(mean, self.std or 1.0, size)
        variance = math.log(1.0 + ((self.std or mean / 2) / mean) ** 2)  # of the logarithm
        return generator.lognormal(math.log(mean) - variance / 2, math.sqrt(variance), size)


@dataclass(frozen=True)
class Description:
    """What to draw.

    Attributes:
        users: how many; those who get no event do not appear.
        lengths: of their histories.
        items: ids of the items of an event.
        actions: bit masks or classes, one an event; None: none.
        action_column: ``actions`` for bit masks, ``rating`` for classes.
        context: codes of the users by feature.
        seed: of all of it.
    """

    users: int
    lengths: Distribution
    items: Distribution
    actions: Distribution | None = None
    action_column: str = "actions"
    context: dict[str, Distribution] | None = None
    seed: int = 0

    def events(self) -> dict[str, np.ndarray]:
        """``user_id``, ``item_id``, ``timestamp`` and the actions, if any; each ``[events]`` int64."""
        lengths, items, actions, _ = (np.random.default_rng((self.seed, part)) for part in range(4))
        length = self.lengths.draw(lengths, self.users)
        user = np.repeat(np.arange(self.users), length)
        place = np.arange(len(user)) - np.repeat(np.cumsum(length) - length, length)
        table = {"user_id": user, "item_id": self.items.draw(items, len(user))}
        table["timestamp"] = START + place * SECONDS_APART
        return table if self.actions is None else {**table, self.action_column: self.actions.draw(actions, len(user))}

    def user_table(self, names: list[str]) -> dict[str, np.ndarray]:
        """``user_id`` and the features ``names``; each ``[users]`` int64.

        Raises:
            ConfigError: a feature that is not described.
        """
        features = self.context or {}
        for name in names:
            if name not in features:
                raise ConfigError(f"no feature '{name}' is described", fix=nearest(name, features))
        order = sorted(features)
        drawn = {
            name: features[name].draw(np.random.default_rng((self.seed, 3, order.index(name))), self.users)
            for name in names
        }
        return {"user_id": np.arange(self.users), **drawn}

    def to_json(self) -> str:
        """The description as text; :func:`read_description` gives it back."""
        return json.dumps(asdict(self), sort_keys=True, indent=1)


def read_description(path: Path) -> Description:
    """The description in a JSON file.

    Raises:
        DataError: it is none.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        hints = get_type_hints(Description)
        context = values.pop("context", None)
        made = {key: _distribution(value, hints[key]) for key, value in values.items()}
        features = None if context is None else {name: Distribution(**entry) for name, entry in context.items()}
        return Description(**made, context=features)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"is no description of made-up data ({error})", where=str(path)) from error
    except ConfigError as error:
        raise DataError(error.what, where=str(path), fix=error.fix) from error


def _distribution(value: Any, hint: Any) -> Any:
    wanted = hint is Distribution or Distribution in get_args(hint)
    return Distribution(**value) if wanted and value is not None else value
