"""Guards stop what cannot succeed, and nothing else."""

import time

import pytest

from pipelines.errors import ConfigError, RunError
from pipelines.training.guards import GuardOptions, Guards, Rent


@pytest.mark.parametrize(("loss", "norm", "name"), [(float("nan"), 1.0, "loss"), (1.0, float("inf"), "gradient norm")])
def test_not_finite_stops_at_once(loss: float, norm: float, name: str) -> None:
    with pytest.raises(RunError, match=f"the {name} is .* at step 7"):
        Guards(GuardOptions()).check_step(7, loss, norm)


def test_explosion_must_last() -> None:
    guards = Guards(GuardOptions(max_grad_norm=10, explosion_steps=3))
    for norm in (11, 12, 1, 11, 12):
        guards.check_step(0, 1.0, norm)
    with pytest.raises(RunError, match="over 10 for 3 logged steps"):
        guards.check_step(0, 1.0, 13)


def test_a_loss_that_does_not_move_stops_and_one_that_does_goes_on() -> None:
    stuck, moving = Guards(GuardOptions(stuck_epochs=2)), Guards(GuardOptions(stuck_epochs=2))
    for epoch, loss in enumerate([8.0, 7.9, 7.8, 7.8, 7.8, 7.8], start=1):
        moving.check_epoch(epoch, loss)
    stuck.check_epoch(1, 8.0)
    stuck.check_epoch(2, 8.0001)
    with pytest.raises(RunError, match="has not moved"):
        stuck.check_epoch(3, 8.0002)


def test_budgets_in_hours_and_money() -> None:
    guards = Guards(GuardOptions(max_hours=2, max_cost=3, price_per_hour=2))
    assert guards.spent(3600) is None
    assert guards.spent(1.5 * 3600) == "max_cost 3 reached"
    assert Guards(GuardOptions(max_hours=2)).spent(7200) == "max_hours 2 reached"
    assert guards.options.cost(1800) == 1.0


def test_a_cost_needs_a_price() -> None:
    with pytest.raises(ConfigError, match="add --price-per-hour"):
        GuardOptions(max_cost=3)


def test_state_survives_a_checkpoint() -> None:
    guards = Guards(GuardOptions(), exploding=2, losses=[3.0])
    again = Guards(GuardOptions())
    again.restore(guards.state())
    assert (again.exploding, again.losses) == (2, [3.0])


def test_what_was_paid_before_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RECPOD_RENT_SECONDS", "RECPOD_LAUNCHED"):
        monkeypatch.delenv(name, raising=False)
    alone = Rent.so_far()
    assert alone.earlier == 0 and alone.after(100) == 100 + alone.here > 100  # a checkpoint knows earlier sessions
    monkeypatch.setenv("RECPOD_RENT_SECONDS", "500")  # a ledger knows them, and what lay between
    monkeypatch.setenv("RECPOD_LAUNCHED", str(time.time() - 10_000))  # a worker that was started again
    counted = Rent.so_far()
    assert counted.here == pytest.approx(10_000, abs=60)
    assert counted.after(100) == 500 + counted.here and counted.after(900) == 900 + counted.here
    monkeypatch.setenv("RECPOD_RENT_SECONDS", "a while")
    with pytest.raises(ConfigError, match="RECPOD_RENT_SECONDS: 'a while' is no number of seconds"):
        Rent.so_far()
