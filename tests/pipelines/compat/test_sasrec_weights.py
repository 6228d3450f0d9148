"""Public weights give the public models' logits here, and weights of anything else are refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.batch import SequenceBatch
from models.sasrec import SASRec, SASRecOptions
from models.tasks import Retrieval
from models.tisasrec import TiSASRec, TiSASRecOptions
from pipelines.compat.sasrec_padding import PaddedSASRec, PaddedTiSASRec, some_rows
from pipelines.compat.sasrec_weights import convert, form_of, read_public, rows_of_items
from pipelines.errors import ConfigError, DataError
from tests.pipelines.compat.public_models import Public
from tests.pipelines.conftest import memory_store

ITEMS, MAXLEN, SPAN = 11, 6, 5
LENGTHS = [6, 1, 3, 6, 2]


def histories(lengths: list[int]) -> tuple[SequenceBatch, Tensor, Tensor]:
    """Packed rows, and the same as ``[B, L]`` items and t' by the public rule, padding on the left."""
    rng = np.random.default_rng(4)
    items = [rng.integers(1, ITEMS + 1, n) for n in lengths]
    seconds = [978_300_000 + np.cumsum(rng.integers(0, 9, n) * 10) for n in lengths]
    rows, times = np.zeros((2, len(lengths), MAXLEN), dtype=np.int64)
    for row, (own, when) in enumerate(zip(items, seconds, strict=True)):
        gaps = np.diff(when)
        scale = gaps[gaps > 0].min() if (gaps > 0).any() else 1
        rows[row, MAXLEN - len(own) :] = own
        times[row, MAXLEN - len(own) :] = [round((t - when.min()) / scale) + 1 for t in when.tolist()]
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    tokens = torch.from_numpy(np.concatenate(items))
    zeros = torch.zeros(len(lengths), dtype=torch.int64)
    clock = torch.from_numpy(np.concatenate(seconds))
    batch = SequenceBatch(offsets, tokens, clock, torch.zeros_like(tokens), zeros, zeros)
    return batch, torch.from_numpy(rows), torch.from_numpy(times)


def loaded(task: Retrieval, state: dict[str, Tensor]) -> Retrieval:
    task.load_state_dict(state)
    return task.eval()


def logits(task: Retrieval, batch: SequenceBatch) -> Tensor:
    with torch.inference_mode():
        return task.score_block(task.encode(batch), torch.arange(1, ITEMS + 1)).double()


FORMS = {
    "2020": ({"year": 2020}, "query", True),
    "2024": ({"year": 2024}, "query", False),
    "2025": ({"year": 2025}, "post", False),
    "2025, norm_first": ({"year": 2025, "pre": True}, "pre", False),
}


@pytest.mark.parametrize(("form", "norm", "masked"), FORMS.values(), ids=FORMS)
def test_sasrec_gives_the_public_logits(form: dict[str, int], norm: str, masked: bool) -> None:
    torch.manual_seed(1)
    public = Public(ITEMS, MAXLEN, **form)  # type: ignore[arg-type]
    state = convert(public.state_dict(), max_length=MAXLEN)
    assert form_of(public.state_dict()).masked(MAXLEN) is masked
    options = SASRecOptions(hidden=8, blocks=2, heads=2, max_length=MAXLEN, norm=norm)  # type: ignore[arg-type]
    batch, rows, times = histories(LENGTHS)
    expected = public.logits(rows, times).detach()
    padded = loaded(PaddedSASRec(ITEMS, options, masked=masked), state)
    assert (logits(padded, batch) - expected).abs().max() < 1e-5
    ours = logits(loaded(SASRec(ITEMS, options), state), batch)
    full = torch.tensor(LENGTHS) == MAXLEN
    assert (ours - expected)[full].abs().max() < 1e-5
    assert (ours - expected)[~full].abs().min(dim=1).values.min() > 0  # there padding is seen, here it is not
    assert (ours - expected)[~full].abs().max() > 1e-2


def test_tisasrec_gives_the_public_logits() -> None:
    torch.manual_seed(2)
    public = Public(ITEMS, MAXLEN, span=SPAN)
    state = public.state_dict()
    state["time_matrix_K_emb.weight"] = torch.cat([state["time_matrix_K_emb.weight"], torch.ones(4, 8)])  # early ones
    options = TiSASRecOptions(hidden=8, blocks=2, heads=2, max_length=MAXLEN, time_span=SPAN)
    batch, rows, times = histories(LENGTHS)
    expected = public.logits(rows, times).detach()
    converted = convert(state, max_length=MAXLEN)
    assert form_of(state).time_span == SPAN
    assert (logits(loaded(PaddedTiSASRec(ITEMS, options), converted), batch) - expected).abs().max() < 1e-5
    full = torch.tensor(LENGTHS) == MAXLEN
    ours = logits(loaded(TiSASRec(ITEMS, options), converted), batch)
    assert (ours - expected)[full].abs().max() < 1e-5
    assert (ours - expected)[~full].abs().max() > 1e-2


def test_rows_are_cut_where_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, _, _ = histories(LENGTHS)
    monkeypatch.setattr("pipelines.compat.sasrec_padding._ROWS", 2)
    parts = list(some_rows(batch))
    assert [part.lengths.tolist() for part in parts] == [[6, 1], [3, 6], [2]]
    assert torch.equal(torch.cat([part.items for part in parts]), batch.items)
    state = convert(Public(ITEMS, MAXLEN).state_dict(), max_length=MAXLEN)
    options = SASRecOptions(hidden=8, max_length=MAXLEN, norm="query")
    task = loaded(PaddedSASRec(ITEMS, options, masked=True), state)
    in_parts = logits(task, batch)
    monkeypatch.setattr("pipelines.compat.sasrec_padding._ROWS", 128)
    torch.testing.assert_close(in_parts, logits(task, batch))


def test_items_are_found_by_their_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    store = memory_store([5, 5], num_items=3)
    form = form_of(Public(9, MAXLEN).state_dict())
    monkeypatch.setattr(type(store), "item_ids", lambda _: np.array([2, 5, 9]))
    rows = rows_of_items(store, form)
    assert rows.tolist() == [0, 2, 5, 9]
    state = Public(9, MAXLEN).state_dict()
    table = convert(state, max_length=MAXLEN, item_rows=rows)["item_embedding.weight"]
    torch.testing.assert_close(table.double()[1:], state["item_emb.weight"][[2, 5, 9]], atol=1e-6, rtol=0)
    assert rows_of_items(store, replace(form, item_rows=4)).tolist() == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="a catalogue of 6 items, the data hold 3"):
        rows_of_items(store, replace(form, item_rows=7))


def changed(state: dict[str, Tensor], name: str, value: Tensor | None) -> dict[str, Tensor]:
    return {**state, name: value} if value is not None else {key: kept for key, kept in state.items() if key != name}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("forward_layers.1.conv2.bias", None, "'forward_layers.1.conv2.bias' is missing"),
        ("user_emb.weight", torch.zeros(3, 8), "'user_emb.weight' is no part of the public SASRec"),
        ("mhc_attn.0.alpha_pre", torch.zeros(()), "--no_mhc"),
        ("forward_layers.0.conv1.weight", torch.zeros(16, 8, 1), r"\(16, 8, 1\), which does not fit a width of 8"),
        ("attention_layers.0.in_proj_bias", torch.zeros(8), "'attention_layers.0.in_proj_bias' has the shape"),
        ("pos_emb.weight", torch.zeros(9, 8), r"9 positions are not those of a maxlen of 6. maxlen is 8 \(or 9"),
        ("pos_emb.weight", torch.ones(7, 8), "row 0 of 'pos_emb.weight' is not 0"),
        ("item_emb.weight", torch.ones(12, 8), "row 0 of 'item_emb.weight' is not 0"),
    ],
)
def test_other_weights_are_refused_by_name(name: str, value: Tensor | None, message: str) -> None:
    state = changed(Public(ITEMS, MAXLEN, year=2025).state_dict(), name, value)
    with pytest.raises(DataError, match=message):
        convert(state, max_length=MAXLEN)


def test_files_of_ddp_are_read_and_others_refused(tmp_path: Path) -> None:
    state = Public(ITEMS, MAXLEN).state_dict()
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "ddp.pth")
    assert read_public(tmp_path / "ddp.pth").keys() == state.keys()
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    torch.save(Public(ITEMS, MAXLEN), tmp_path / "model.pth")
    (tmp_path / "text.pth").write_text("weights")
    for name, message in (
        ("epoch", "named tensors"),
        ("model", "more than"),
        ("text", "no state_dict"),
        ("no", "no such"),
    ):
        with pytest.raises(DataError, match=message):
            read_public(tmp_path / f"{name}.pth")
