"""The models that a RecBole file may name, and what their keys mean here.

A file for a model of RecBole's gets RecBole's defaults for what it leaves out, whoever trains it; for this project's
models the defaults are this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.config_files import CONFIGS, KeyPath, Layered, read_yaml
from pipelines.engines.recbole_options import WITHOUT_COUNTERPART, activation, refusal
from pipelines.errors import ConfigError, MachineError, nearest

ATTENTION = {
    "hidden_size": "hidden",
    "n_layers": "blocks",
    "n_heads": "heads",
    "inner_size": "feed_forward",
    "hidden_dropout_prob": "dropout",
    "hidden_act": "activation",
}
_STATE_SPACE = {
    "hidden_size": "hidden",
    "num_layers": "layers",
    "n_layers": "layers",
    "dropout_prob": "dropout",
    "d_state": "d_state",
    "d_conv": "d_conv",
    "expand": "expand",
    "dt_min": "dt_min",
    "dt_max": "dt_max",
    "d_P": "s5_state",
}
_SASREC_DEFAULTS = {
    "hidden_size": 64,
    "n_layers": 2,
    "n_heads": 2,
    "inner_size": 256,
    "hidden_dropout_prob": 0.5,
    "attn_dropout_prob": 0.5,
    "hidden_act": "gelu",
}
_SASREC_NOTE = (
    "this project's SASRec: no LayerNorm on the input but one after the last block, weights Xavier-normal at the "
    "start, LayerNorm with 1e-8; RecBole's own: --engine recbole"
)
CONVERTED: dict[str, Callable[[Any], Any]] = {"hidden_act": activation}


@dataclass(frozen=True)
class Form:
    """A model of a RecBole file.

    Attributes:
        model: its name here; None for one that RecBole alone has.
        engine: its name in RecBole.
        keys: RecBole's keys, and the options that they are.
        defaults: what RecBole takes for keys that the file leaves out.
        fixed: options that RecBole has no key for.
        checked: keys that can be honoured in part: see :mod:`pipelines.engines.recbole_options`.
        note: how the model differs from RecBole's own.
    """

    model: str | None
    engine: str
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    checked: tuple[str, ...] = ()
    note: str = ""

    @property
    def ours(self) -> bool:
        """Whether RecBole's trainer, too, would train this project's model."""
        return self.engine.startswith("RecPod")

    @property
    def known(self) -> set[str]:
        """Its keys."""
        return {*self.keys, *self.checked}


_TIME = {"time_span": "time_span", "time_unit": "time_unit"}
_OLDEST = {"norm": "post", "positions": "oldest", "scale_embedding": False}  # as RecBole's SASRec
_TISASREC = Form("tisasrec", "RecPodTiSASRec", {**ATTENTION, **_TIME}, checked=tuple(WITHOUT_COUNTERPART))
_SS4REC = Form("ss4rec-official", "RecPodSS4Rec", {**_STATE_SPACE, "d_H": ""})
FORMS: dict[str, Form] = {
    "SASRec": Form("sasrec", "SASRec", ATTENTION, _SASREC_DEFAULTS, _OLDEST, tuple(WITHOUT_COUNTERPART), _SASREC_NOTE),
    "TiSASRec": _TISASREC,
    **dict.fromkeys(("SS4Rec", "ss4rec", "ss4rec-official"), _SS4REC),
    "RecPodSASRec": Form("sasrec", "RecPodSASRec", ATTENTION, checked=tuple(WITHOUT_COUNTERPART)),
    "RecPodTiSASRec": _TISASREC,
    "RecPodSS4Rec": Form("ss4rec", "RecPodSS4Rec", _STATE_SPACE),
}


def form_of(name: Any, engine: str) -> Form:
    """The form of the model ``name`` for ``engine``.

    Raises:
        ValueError: this engine does not have it.
        MachineError: RecBole, which would train it, is not installed.
    """
    form = FORMS.get(str(name))
    if engine != "recbole":
        if form is None:
            raise ValueError(f"no model of this project ({nearest(str(name), FORMS)}); RecBole's own: --engine recbole")
        return form
    if form is not None and form.ours:
        return form
    theirs = recbole_keys(str(name))
    return Form(None, str(name), dict.fromkeys(theirs, ""))


def recbole_keys(model: str) -> list[str]:
    """The keys of one of RecBole's models, read from its package without importing it.

    Raises:
        ValueError: RecBole has no such model.
        MachineError: RecBole is not installed.
    """
    package = find_spec("recbole")
    if package is None or not package.submodule_search_locations:
        fix = "install the extra `data`: ./entrypoints/setup.sh"
        raise MachineError("the engine recbole needs the package recbole", where="engine", fix=fix)
    folder = Path(next(iter(package.submodule_search_locations))) / "properties" / "model"
    path = folder / f"{model}.yaml"
    if not path.is_file():
        names = [*(file.stem for file in folder.glob("*.yaml")), *FORMS]
        raise ValueError(f"RecBole has no model '{model}' ({nearest(model, names)})")
    return list(read_yaml(path).values)


def put_model(target: Layered, source: Layered, form: Form) -> list[str]:
    """Write the model's options into ``target``, RecBole's defaults below; lines for what is not used.

    Raises:
        ConfigError: a value that cannot be honoured, with file:line.
    """
    given, notes = {**form.defaults, **source.values}, []
    for key, option in form.fixed.items():
        target.put(("model", key), option, "RecBole's SASRec")
    for key in [key for key in given if key in form.known]:
        origin = source.origin((key,)) if key in source.values else "RecBole's default"
        try:
            note = _put(target, form, key, given, origin)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"'{key}: {given[key]}' cannot be honoured: {error}", where=origin) from error
        if note and key in source.values:
            notes.append(f"{origin}: {note}")
    own = source.values.get("recpod")
    if own is not None and not isinstance(own, dict):
        raise ConfigError("it is no mapping of options", where=source.origin(("recpod",)))
    _put_leaves(target, source, (), own or {})  # goes first
    return [*notes, *([form.note] if form.note else [])]


def _put_leaves(target: Layered, source: Layered, path: KeyPath, value: Any) -> None:
    """Write a mapping of model options leaf by leaf: its siblings, translated from RecBole's keys, stay."""
    if path and not (isinstance(value, dict) and value):
        target.put(("model", *path), value, source.origin(("recpod", *path)))
        return
    for key, below in value.items():
        _put_leaves(target, source, (*path, str(key)), below)


def _put(target: Layered, form: Form, key: str, given: Mapping[str, Any], origin: str) -> str:
    value = given[key]
    if key in form.checked:
        if reason := refusal(key, value, given):
            raise ValueError(reason)
        return f"'{key}' is not used: {WITHOUT_COUNTERPART[key]}"
    if key == "d_H":
        if value != given.get("hidden_size", 64):
            raise ValueError("d_H must equal hidden_size: S5 stands in the residual stream")
        return ""
    target.put(("model", form.keys[key]), CONVERTED.get(key, lambda same: same)(value), origin)
    return ""


def engine_options(target: Layered, form: Form) -> dict[str, Any]:
    """All of the model's options as RecBole's ``recpod`` mapping, those of its file in configs/models below."""
    path = CONFIGS / "models" / f"{form.model}.yaml"
    own = Layered({"model": target.values.get("model", {})}).over(Layered({"model": read_yaml(path).values}))
    return {key: value for key, value in own.values["model"].items() if key not in ("name", "max_length")}
