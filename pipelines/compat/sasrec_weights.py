"""Weights of the public SASRec and TiSASRec in PyTorch, as weights of this project's models.

Sources: github.com/pmixer/SASRec.pytorch and github.com/pmixer/TiSASRec.pytorch. There are four forms:

    SASRec 2020    pos_emb [maxlen, d], LayerNorm on the queries, states of padding set to 0 after each block
    SASRec 2024    pos_emb [maxlen + 1, d] with row 0 for padding, LayerNorm on the queries, padding left alone
    SASRec 2025    as 2024, LayerNorm after the sum or (norm_first) before the layer
    TiSASRec       abs_pos_K_emb and abs_pos_V_emb [maxlen, d]; otherwise as SASRec 2020

Those of 2024 and 2025 have the same names and shapes, so the LayerNorm's place must be said. So must the number of
heads. Positions there count from the left of a row padded to ``maxlen``, here from the newest event.

Neither of them hides padding from the attention: a short row's logits depend on how much of it there is. The models of
:mod:`pipelines.compat.sasrec_padding` do the same and give their logits; SASRec and TiSASRec of this project with the
same weights give them for rows of ``maxlen`` events, and leave padding out of shorter ones.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipelines.data.store import SequenceStore
from pipelines.errors import ConfigError, DataError

# A block's names there, and here; SASRec's attention is torch's own, TiSASRec's three linear layers.
_BLOCK = {
    "attention_layernorms.{i}.weight": "attention_residual.norm.weight",
    "attention_layernorms.{i}.bias": "attention_residual.norm.bias",
    "forward_layernorms.{i}.weight": "feed_forward_residual.norm.weight",
    "forward_layernorms.{i}.bias": "feed_forward_residual.norm.bias",
    "forward_layers.{i}.conv1.weight": "feed_forward.inward.weight",
    "forward_layers.{i}.conv1.bias": "feed_forward.inward.bias",
    "forward_layers.{i}.conv2.weight": "feed_forward.outward.weight",
    "forward_layers.{i}.conv2.bias": "feed_forward.outward.bias",
}
_ATTENTION = {
    "sasrec": {
        "attention_layers.{i}.in_proj_weight": "attention.in_proj_weight",
        "attention_layers.{i}.in_proj_bias": "attention.in_proj_bias",
        "attention_layers.{i}.out_proj.weight": "attention.out_proj.weight",
        "attention_layers.{i}.out_proj.bias": "attention.out_proj.bias",
    },
    "tisasrec": {
        f"attention_layers.{{i}}.{theirs}_w.{kind}": f"attention.{theirs.lower()}_proj.{kind}"
        for theirs in "QKV"
        for kind in ("weight", "bias")
    },
}
_LAST = {"last_layernorm.weight": "output_norm.weight", "last_layernorm.bias": "output_norm.bias"}
_POSITIONS = {
    "sasrec": {"pos_emb.weight": "positions.table.weight"},
    "tisasrec": {
        "abs_pos_K_emb.weight": "position_keys.table.weight",
        "abs_pos_V_emb.weight": "position_values.table.weight",
    },
}
_INTERVALS = {"time_matrix_K_emb.weight": "interval_keys.weight", "time_matrix_V_emb.weight": "interval_values.weight"}


@dataclass(frozen=True)
class PublicForm:
    """What a state_dict says of its model.

    Attributes:
        model: ``sasrec`` or ``tisasrec``.
        item_rows: rows of the item table, padding among them.
        hidden: width.
        blocks: blocks.
        position_rows: rows of a position table.
        time_span: the longest interval told apart; None for SASRec.
    """

    model: Literal["sasrec", "tisasrec"]
    item_rows: int
    hidden: int
    blocks: int
    position_rows: int
    time_span: int | None

    def masked(self, max_length: int) -> bool:
        """Whether states of padding are set to 0 after each block: SASRec of 2020 and TiSASRec.

        Raises:
            DataError: the position table is not one of a model of ``max_length``.
        """
        rows = self.position_rows
        if rows == max_length:
            return True
        if self.model == "sasrec" and rows == max_length + 1:
            return False
        right = f"{rows}" if self.model == "tisasrec" else f"{rows - 1} (or {rows} for weights of 2020)"
        raise DataError(f"{rows} positions are not those of a maxlen of {max_length}", fix=f"maxlen is {right}")


def read_public(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` file, without the prefix that DistributedDataParallel gives their names.

    Raises:
        DataError: not there, no file of torch's, or one that holds more than named tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError("no such file", where=str(path), fix="Check the path") from None
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        reason = "more than tensors and numbers" if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise DataError(f"is no state_dict that can be read ({reason})", where=str(path)) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError("is no state_dict: it holds more than named tensors", where=str(path))
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def form_of(state: Mapping[str, Tensor]) -> PublicForm:
    """Which public model the tensors belong to; every name and shape is checked.

    Raises:
        DataError: a name is missing or unknown, or a tensor has another shape.
    """
    if any(name.startswith("mhc_") for name in state):
        what = "hyper-connections of another kind: their streams are copied anew in each sub-layer"
        raise DataError(f"the weights have {what}", fix="Only models without them (--no_mhc) can be taken over")
    model: Literal["sasrec", "tisasrec"] = "tisasrec" if "time_matrix_V_emb.weight" in state else "sasrec"
    blocks = len({match[1] for name in state if (match := re.match(r"attention_layernorms\.(\d+)\.", name))})
    known = ["item_emb.weight", *_POSITIONS[model], *_LAST]
    known += [*_INTERVALS] if model == "tisasrec" else []
    known += [name.format(i=i) for i in range(blocks) for name in (*_BLOCK, *_ATTENTION[model])]
    for name in known:
        if name not in state:
            raise DataError(f"'{name}' is missing: these are not the weights of a public SASRec or TiSASRec")
    if other := sorted(set(state) - set(known)):
        raise DataError(f"'{other[0]}' is no part of the public {'TiSASRec' if model == 'tisasrec' else 'SASRec'}")
    if not blocks:
        raise DataError("the weights have no block")
    item_rows, hidden = state["item_emb.weight"].shape
    rows = {len(state[name]) for name in _POSITIONS[model]}
    span = len(state["time_matrix_V_emb.weight"]) - 1 if model == "tisasrec" else None
    for name in known:
        _check_shape(name, state[name], hidden)
    if len(rows) > 1 or (span is not None and len(state["time_matrix_K_emb.weight"]) <= span):
        raise DataError("the tables of keys and values have different lengths")
    return PublicForm(model, item_rows, hidden, blocks, rows.pop(), span)


def _check_shape(name: str, tensor: Tensor, hidden: int) -> None:
    width = tuple(tensor.shape[1:])
    if name.endswith("emb.weight"):
        right = width == (hidden,)
    elif ".conv" in name and name.endswith("weight"):
        right = tuple(tensor.shape) == (hidden, hidden, 1)
    elif "in_proj" in name:
        right = len(tensor) == 3 * hidden and width == ((hidden,) if name.endswith("weight") else ())
    else:
        matrix = name.endswith("weight") and "norm" not in name
        right = tuple(tensor.shape) == ((hidden, hidden) if matrix else (hidden,))
    if not right:
        raise DataError(f"'{name}' has the shape {tuple(tensor.shape)}, which does not fit a width of {hidden}")


def convert(state: Mapping[str, Tensor], *, max_length: int, item_rows: Tensor | None = None) -> dict[str, Tensor]:
    """The state_dict of this project's model with the same weights.

    Args:
        state: as :func:`read_public` gives it.
        max_length: ``maxlen`` of the public model, ``max_length`` of this one.
        item_rows: ``[num_items + 1]`` int64: the row there of each item here, 0 first; None: the same.

    Returns:
        For :class:`models.sasrec.SASRec` or :class:`models.tisasrec.TiSASRec` with the form's sizes, the form's
        ``norm``, ``relu`` and a scaled embedding.

    Raises:
        DataError: see :func:`form_of` and :meth:`PublicForm.masked`; or the padding's vectors are not 0.
    """
    form = form_of(state)
    first = 0 if form.masked(max_length) else 1  # the row of the oldest place
    items = state["item_emb.weight"]
    if items[0].count_nonzero() and not form.masked(max_length):
        raise DataError("row 0 of 'item_emb.weight' is not 0: padding would have a vector of its own")
    items = torch.cat([torch.zeros_like(items[:1]), (items if item_rows is None else items[item_rows])[1:]])
    result = {"item_embedding.weight": items}
    for theirs, ours in _POSITIONS[form.model].items():
        if first and state[theirs][0].count_nonzero():
            raise DataError(f"row 0 of '{theirs}' is not 0: padding would have a place of its own")
        result[ours] = state[theirs][first:].flip(0)  # from the newest
    if form.time_span is not None:  # early weights have more keys than there are intervals
        result |= {ours: state[theirs][: form.time_span + 1] for theirs, ours in _INTERVALS.items()}
    for i in range(form.blocks):
        for theirs, ours in {**_BLOCK, **_ATTENTION[form.model]}.items():
            tensor = state[theirs.format(i=i)]
            result[f"blocks.{i}.{ours}"] = tensor.squeeze(-1) if ".conv" in theirs and tensor.ndim == 3 else tensor
    result |= {ours: state[theirs] for theirs, ours in _LAST.items()}
    return {name: tensor.to(torch.float32).clone() for name, tensor in result.items()}


def rows_of_items(store: SequenceStore, form: PublicForm) -> Tensor:
    """The row of each of the store's items in the public item table, ``[num_items + 1]`` int64, 0 first.

    SASRec's rows are the ids of its text file. A table of one row an item (TiSASRec numbers them anew) is taken in the
    order of the ids.

    Raises:
        ConfigError: the table is of other data.
    """
    ids = store.item_ids()
    if np.issubdtype(ids.dtype, np.integer) and form.item_rows == int(ids.max()) + 1 and int(ids.min()) >= 1:
        return torch.from_numpy(np.concatenate([[0], ids.astype(np.int64)]))
    if form.item_rows == store.num_items + 1:
        return torch.arange(form.item_rows)
    what = f"the weights are of a catalogue of {form.item_rows - 1} items, the data hold {store.num_items}"
    raise ConfigError(what, where="--state_dict_path", fix="give the data that the model was trained on")
