"""The one configuration schema: a recipe resolved, checked and typed.

Options are plain dataclasses beside the code that uses them and own their defaults; this schema wraps them. A recipe
(configs/runs/NAME.yaml) names a dataset and a model (configs/models/NAME.yaml) and holds only what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from models.registry import OPTIONS, RANKING_MODELS
from pipelines.config_files import CONFIGS, KeyPath, Layered, parse_override, read_yaml
from pipelines.config_identity import identity_of
from pipelines.config_keys import valid_keys
from pipelines.data.loader import LoaderOptions
from pipelines.engines.recbole_unused import refuse_sets, used_values
from pipelines.errors import ConfigError, nearest
from pipelines.evaluation.protocols import get_protocol
from pipelines.evaluation.ranking import cutoff_of, metric_names
from pipelines.ranking_config import check_ranking_run
from pipelines.speed_config import check_speed
from pipelines.spread_config import check_spread
from pipelines.training.dense.options import ParallelOptions
from pipelines.training.guards import GuardOptions
from pipelines.training.optimizers import OptimizerOptions
from pipelines.training.options import TrainingOptions
from pipelines.training.sparse.options import EmbeddingOptions
from pipelines.training.tracking import TrackingOptions

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class DatasetConfig(BaseModel):
    """Which interactions, and which of them are kept."""

    model_config = STRICT

    name: str
    """A name from configs/datasets, an alias, or the path of an interactions file."""
    min_user_events: int | None = Field(None, ge=1)
    """Events a user must have (iterated with ``min_item_events`` until both hold). Default: the dataset's own."""
    min_item_events: int | None = Field(None, ge=1)
    """Events an item must have. Default: the dataset's own."""
    min_rating: float | None = None
    """Ratings below it are dropped. Default: the dataset's own."""
    timestamp_unit: str | None = None
    """What the file counts time in: s, ms, us, ns or days. Default: the dataset's own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Reader options over the dataset's own, such as the names of columns."""
    gdrive_id: str | None = None
    """Google Drive id of the file, where the dataset has no public address."""
    cache: Path | None = None
    """Folder for downloads and sequence stores. Default: RECPOD_DATA, else ``data``."""


class EvaluationConfig(BaseModel):
    """Which questions are asked, and how the answers are counted."""

    model_config = STRICT

    protocol: str = "loo-full-masked"
    """``loo-full``, ``loo-full-masked``, ``users-full``, ``users-full-masked`` or ``global-time``: see
    pipelines/evaluation/protocols.py. Of a ranking model ``ranking-last`` or ``ranking-users``: see
    pipelines/evaluation/ranking_protocols.py."""
    ks: tuple[Annotated[int, Field(ge=1)], ...] = (1, 5, 10, 20, 50)
    """Cut-offs of HR, Recall, NDCG and MRR; 10 is always among them, and those that gates and ``training.select``
    name."""
    also: tuple[str, ...] = ()
    """Further protocols that the chosen checkpoint is reported under; they decide nothing."""
    shuffle_ties: bool = False
    """Report a control as well: events of one user in the same second in random order. What is lost there was learnt
    from the order in which the file holds them."""
    shuffle_order: bool = False
    """Report a control as well: each history in random order, targets in their places. What is lost there was learnt
    from order; a model that reads a history as a bag of items loses nothing."""
    beyond_accuracy: bool = True
    """Report what the test queries are shown as well: the share of the catalogue that is in anybody's list, and how
    popular it is. It takes two to three times what the ranking itself takes, once a run."""


class EngineConfig(BaseModel):
    """Who trains and scores. Data, split and counting of the answers are this project's in any case."""

    model_config = STRICT

    name: Literal["recpod", "recbole"] = "recpod"
    """``recpod``: this project's ``model``. ``recbole``: a sequential model of RecBole's; ``model``, ``optimizer`` and
    the batch sizes of ``loader`` are not used then, and ``training`` says how long and what is selected."""
    model: str = Field(default="SASRec", pattern=r"^[A-Za-z0-9_]+$")
    """RecBole's name of the model (``recbole`` alone)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """RecBole's own parameters, such as ``hidden_size`` or ``learning_rate``; the rest have RecBole's defaults."""


class Gate(BaseModel):
    """What a run must reach on the test queries; a miss exits with 3 and is published."""

    model_config = STRICT

    metric: str
    """``HR``, ``Recall``, ``NDCG`` or ``MRR`` at any cut-off, such as ``NDCG@10``. Of a ranking model ``AUC`` or
    ``GAUC``, also of one task, such as ``AUC:click``."""
    above: float | None = None
    """The metric must be greater than this."""
    times_popularity: float | None = None
    """The metric must be at least this many times the popularity baseline's."""

    @model_validator(mode="after")
    def _has_a_threshold(self) -> Gate:
        if self.above is None and self.times_popularity is None:
            raise ValueError(f"the gate on {self.metric} has no threshold: give above or times_popularity")
        return self

    def describe(self) -> str:
        """The gate in words."""
        above = f"{self.metric} > {self.above:g}" if self.above is not None else ""
        times = f"{self.metric} >= {self.times_popularity:g} x popularity" if self.times_popularity is not None else ""
        return " and ".join(part for part in (above, times) if part)


class RunConfig(BaseModel):
    """A run: dataset + model + training + gates."""

    model_config = STRICT

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder."""
    description: str = ""
    """What the run is for, for its report."""
    dataset: DatasetConfig
    """The interactions."""
    model: dict[str, Any] = Field(default_factory=lambda: {"name": "sasrec"})
    """``name`` of a model, and its options (checked against the model's own dataclass). A recipe must name one, unless
    another engine trains."""
    engine: EngineConfig = EngineConfig()
    """Who trains."""
    loader: LoaderOptions = LoaderOptions()
    """How histories become batches."""
    optimizer: OptimizerOptions = OptimizerOptions()
    """Optimiser and schedule."""
    training: TrainingOptions = TrainingOptions()
    """How long, what to keep, when to look."""
    embedding: EmbeddingOptions = EmbeddingOptions()
    """Where the item table lives, and how it trains when it is spread over processes."""
    parallel: ParallelOptions = ParallelOptions()
    """How a block's layers are spread over processes."""
    guards: GuardOptions = GuardOptions()
    """When to stop early."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Protocol and metrics."""
    gates: tuple[Gate, ...] = ()
    """All must hold."""
    recipe: str = ""
    """The recipe's own name, by which later recipes find it; the file's name."""
    after: str | None = None
    """The recipe whose gate should have passed before this one is run."""
    require_after: bool = False
    """Refuse to run, rather than warn, when ``after``'s gate has not passed for this model and code."""
    tracking: TrackingOptions = TrackingOptions()
    """W&B and MLflow."""
    seed: int = Field(1, ge=0, lt=2**63)
    """Seed of weights, dropout and batch order."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """``auto`` takes the GPU when there is one."""
    debug: bool = False
    """Watch activations and gradients, dump a failing step. It never shortens a run."""
    runs: Path = Path("runs")
    """Folder in which the run's folder lies."""

    @property
    def folder(self) -> Path:
        """The run's folder; each model of another engine has its own."""
        other = "" if self.engine.name == "recpod" else f"-{self.engine.name}-{self.engine.model}"
        return self.runs / f"{self.name}{other}"

    @property
    def cutoffs(self) -> tuple[int, ...]:
        """Every cut-off that is asked for, ascending: the recipe's, 10, and those of its gates and selecting metric."""
        named = (cutoff_of(metric) for metric in (self.training.select, *(gate.metric for gate in self.gates)))
        return tuple(sorted({*self.evaluation.ks, 10, *(k for k in named if k is not None)}))

    @property
    def ranks(self) -> bool:
        """Whether the model predicts actions (see ranking_stages.py) rather than the next item."""
        return self.model["name"] in RANKING_MODELS

    def model_options(self) -> Any:
        """The model's options as its dataclass."""
        return _model_options(self.model)

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults filled in, as plain data."""
        values = self.model_dump(mode="json")
        name, options = self.model["name"], self.model_options()
        values["model"] = {"name": name, **TypeAdapter(type(options)).dump_python(options, mode="json")}
        return values

    def to_yaml(self) -> str:
        """What is used of :meth:`resolved` as YAML; reading it back gives an equal configuration."""
        return to_yaml(used_values(self.resolved()))

    def identity(self) -> str:
        """Digest of what decides the weights: dataset filters, model, loader, optimiser, training, seed.

        Where a run lies, how it is watched, how long it may last and over how many processes blocks are spread do not
        change what a step computes.
        """
        return identity_of(self)


def to_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML in their own order."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def recipes() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {path.stem: path for path in sorted((CONFIGS / "runs").glob("*.yaml"))}


def load_config(recipe: str | Path, overrides: Sequence[str] = (), extra: Layered | None = None) -> RunConfig:
    """The run of a recipe's name or a YAML file, with ``--set`` overrides and the values of other flags on top.

    Raises:
        ConfigError: unknown recipe, key, model or value, named with file and line and the nearest valid name.
    """
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        known = recipes()
        if str(recipe) not in known:
            raise ConfigError(f"unknown recipe '{recipe}'", fix=nearest(str(recipe), known))
        path = known[str(recipe)]
    layers = read_yaml(path)
    layers.put(("recipe",), path.stem, str(path))
    if extra is not None:
        layers = extra.over(layers)
    for text in overrides:
        key, value = parse_override(text)
        layers.put(key, value, f"--set {text}")
    return build_config(layers)


def build_config(layers: Layered) -> RunConfig:
    """Check layered values against the schema; model defaults come from configs/models.

    Raises:
        ConfigError: see :func:`load_config`.
    """
    for key in ("dataset", "model"):  # a bare name stands for a mapping that holds nothing else
        if isinstance(layers.values.get(key), str):
            layers.values[key] = {"name": layers.values[key]}
    layers = _with_model_file(layers)
    try:
        config = RunConfig.model_validate(layers.values)
    except ValidationError as error:
        raise _explain(error, RunConfig, (), layers) from error
    _model_options(config.model, layers)
    _check_evaluation(config, layers)
    _check_length(config, layers)
    check_spread(config, layers)
    check_speed(config, layers)
    refuse_sets(config, layers.origins)
    return config


def _check_length(config: RunConfig, layers: Layered) -> None:
    """Refuse now a history longer than the positions that the model has learnt."""
    positions, wanted = getattr(config.model_options(), "max_length", None), config.loader.max_length
    if config.engine.name == "recpod" and positions is not None and wanted > positions:
        what = f"histories of {wanted} items for a model with {positions} positions"
        raise ConfigError(what, where=layers.origin(("loader", "max_length")), fix=f"set model.max_length={wanted}")


def _check_evaluation(config: RunConfig, layers: Layered) -> None:
    """Refuse now what evaluation would refuse after hours of training."""
    if config.ranks:
        check_ranking_run(config, layers.origin)
        return
    chosen = get_protocol(config.evaluation.protocol)
    for name in config.evaluation.also:
        if get_protocol(name).split != chosen.split:
            what = f"protocol '{name}' divides the data otherwise than '{chosen.name}'"
            raise ConfigError(what, where=layers.origin(("evaluation", "also")), fix="set evaluation.also=[]")
    named = [("gates", gate.metric) for gate in config.gates] + [("training", config.training.select)]
    for key, metric in named:
        if cutoff_of(metric) is None:
            valid = metric_names(config.cutoffs)
            raise ConfigError(f"unknown metric '{metric}'", where=layers.origin((key,)), fix=nearest(metric, valid))


def _with_model_file(layers: Layered) -> Layered:
    model, engine = layers.values.get("model"), layers.values.get("engine")
    if model is None and isinstance(engine, dict) and engine.get("name") == "recbole":  # it would not be used
        layers.values.pop("model", None)
        return layers
    if not isinstance(model, dict) or not isinstance(model.get("name"), str):
        raise ConfigError(
            "no model is named", where=layers.origin(("model",)), fix=f"valid: {', '.join(model_names())}"
        )
    name, files = model["name"], {path.stem: path for path in (CONFIGS / "models").glob("*.yaml")}
    if name not in files:
        if name in OPTIONS:
            return layers
        where = layers.origin(("model", "name"))
        raise ConfigError(f"unknown model '{name}'", where=where, fix=nearest(name, model_names()))
    below = read_yaml(files[name])
    del model["name"]  # the file's `name` is the class; the recipe named the file
    under = Layered({"model": below.values}, {("model", *key): origin for key, origin in below.origins.items()})
    return layers.over(under)


def model_names() -> list[str]:
    """The names a recipe may give a model: shipped model files and model classes."""
    return sorted({path.stem for path in (CONFIGS / "models").glob("*.yaml")} | set(OPTIONS))


def _model_options(model: dict[str, Any], layers: Layered | None = None) -> Any:
    layers = layers or Layered()
    values = {key: value for key, value in model.items() if key != "name"}
    options = OPTIONS[model["name"]]
    try:
        return TypeAdapter(options).validate_python(values)
    except ValidationError as error:
        raise _explain(error, options, ("model",), layers) from error


def _explain(error: ValidationError, schema: Any, prefix: KeyPath, layers: Layered) -> ConfigError:
    """The first of pydantic's complaints as one line with file, line, key path and the nearest valid key."""
    first = error.errors()[0]
    path = (*prefix, *(str(part) for part in first["loc"]))
    dotted, where = ".".join(path), layers.origin(path)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        valid = valid_keys(schema, path[len(prefix) : -1])
        return ConfigError(f"unknown key '{dotted}'", where=where, fix=nearest(path[-1], valid))
    if first["type"] == "missing":
        return ConfigError(f"'{dotted}' is missing", where=where)
    what = first["msg"].removeprefix("Value error, ")
    key = what.partition(":")[0]
    if key in valid_keys(schema, path[len(prefix) :]):  # a dataclass's own check names its field
        return ConfigError(f"'{dotted}.{key}'{what[len(key) :]}", where=layers.origin((*path, key)))
    return ConfigError(f"'{dotted}': {what[:1].lower()}{what[1:]} (it is {first['input']!r})", where=where)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file: every key optional, ``extends`` allowed, a model's keys those of any model."""
    schema = RunConfig.model_json_schema()
    schema.pop("required", None)  # a file that extends another holds only what differs
    schema["properties"]["extends"] = {"type": "string", "description": "A recipe file, relative to this one."}
    options = [TypeAdapter(kind).json_schema() for kind in OPTIONS.values()]
    for entry in options:
        schema["$defs"].update(entry.pop("$defs", {}))
        entry.pop("required", None)
        entry["properties"]["name"] = {"type": "string", "description": "The model.", "examples": model_names()}
    named = {"type": "string", "description": "The name alone."}
    schema["properties"]["model"] = {
        "anyOf": [named, *options],
        "description": schema["properties"]["model"].get("description"),
    }
    dataset = {"$ref": schema["properties"]["dataset"]["$ref"]}
    schema["properties"]["dataset"] = {
        "anyOf": [named, dataset],
        "description": schema["properties"]["dataset"]["description"],
    }
    return schema
