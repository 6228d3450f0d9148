"""Debug mode names the module that broke, keeps the step, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.batch import SequenceBatch
from models.tasks import LossOutput
from pipelines.errors import RunError
from pipelines.training.debug import DebugOptions, DebugWatch, LossAlarm, activations, gradient_norms, parameter_group
from pipelines.training.debug_dump import load_dump, replay_loss
from pipelines.training.debug_trace import Trace, find_origin


class Double(nn.Module):
    """``2 x``; on request it makes a NaN forward, or a gradient that is not finite, or only a parameter's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.breaks = ""

    def forward(self, x: Tensor) -> Tensor:
        if self.breaks == "forward":
            return 2 * x * torch.log(-self.scale.square())
        if self.breaks == "backward":
            return 2 * x * self.scale + 0 * torch.sqrt(x - x.detach()).nan_to_num()  # d sqrt at 0 is infinite
        return 2 * x * self.scale


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.twice = Double()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.twice(self.linear(x))) + x


class Task(nn.Module):
    """Two blocks over an embedding, called through ``loss`` as the trainer does."""

    def __init__(self) -> None:
        super().__init__()
        self.item_embedding = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.breaks = ""

    def loss(self, batch: SequenceBatch) -> LossOutput:
        x = self.item_embedding(batch.items)
        for block in self.blocks:
            x = block(x)
        logits = x @ self.item_embedding.weight.t()
        if self.breaks == "loss":
            logits = logits / 0
        total = nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
        return LossOutput(total, torch.tensor(batch.num_tokens))


def make_batch(seed: int = 0) -> SequenceBatch:
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(1, 10, (6,), generator=generator)
    return SequenceBatch(
        offsets=torch.tensor([0, 2, 6]),
        items=items,
        timestamps=torch.arange(6),
        targets=items.roll(1),
        request_time=torch.tensor([9, 9]),
        user_index=torch.tensor([0, 1]),
    )


def make_task(seed: int = 0) -> Task:
    torch.manual_seed(seed)
    return Task()


def update(task: Task, watch: DebugWatch, step: int, batches: list[SequenceBatch], epoch: int = 0) -> float:
    """One update up to the optimiser's step, as the trainer does it."""
    task.zero_grad()
    total, count = 0.0, 0
    for batch in batches:
        watch.before_update(batch, step)
        output = task.loss(batch)
        output.sum.backward()
        total, count = total + output.sum.item(), count + int(output.count)
    torch._foreach_div_([parameter.grad for parameter in task.parameters() if parameter.grad is not None], count)
    watch.after_backward(total / count, step, epoch)
    return total / count


@pytest.mark.parametrize("block", [0, 1])
def test_the_module_that_makes_nan_is_named(tmp_path: Path, block: int) -> None:
    task = make_task()
    task.blocks[block].twice.breaks = "forward"
    watch = DebugWatch(tmp_path)
    watch.attach(task)
    with pytest.raises(RunError, match=rf"Double 'blocks\.{block}\.twice' \(output; its inputs were finite"):
        update(task, watch, 7, [make_batch()])
    summary = json.loads((tmp_path / "step-7.json").read_text())
    assert summary["origin"]["module"] == f"blocks.{block}.twice"
    assert summary["loss"] == "nan" and summary["step"] == 7 and summary["dump"] == "step-7.pt"
    assert f"output of blocks.{block}.twice" in summary["not_finite"]


@pytest.mark.parametrize("block", [0, 1])
def test_the_module_that_makes_a_bad_gradient_is_named(tmp_path: Path, block: int) -> None:
    task = make_task()
    task.blocks[block].twice.breaks = "backward"
    watch = DebugWatch(tmp_path)
    watch.attach(task)
    with pytest.raises(RunError, match=rf"Double 'blocks\.{block}\.twice' \(gradient of input"):
        update(task, watch, 0, [make_batch()])


def test_a_broken_parameter_is_named(tmp_path: Path) -> None:
    task = make_task()
    with torch.no_grad():
        task.blocks[1].linear.weight[2, 3] = float("inf")
    watch = DebugWatch(tmp_path)
    watch.attach(task)
    with pytest.raises(RunError, match=r"Linear 'blocks\.1\.linear' \(output; its parameter weight is not finite"):
        update(task, watch, 0, [make_batch()])


@pytest.mark.parametrize("broken_weight", [False, True])
def test_code_between_modules_is_blamed_on_the_module_it_stands_in(tmp_path: Path, broken_weight: bool) -> None:
    class Functional(nn.Module):
        """Uses the weight of ``conv`` without calling it, as fused kernels do."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.linear(x, self.conv.weight)
            return self.linear(x if broken_weight else x / 0 - x / 0)

    task = make_task()
    task.blocks[1] = Functional()
    if broken_weight:
        with torch.no_grad():
            task.blocks[1].conv.weight[0, 0] = float("nan")
    watch = DebugWatch(tmp_path)
    watch.attach(task)
    why = "its parameter conv.weight is not finite" if broken_weight else "made by its own code"
    with pytest.raises(RunError, match=rf"Functional 'blocks\.1' \(what it gives to 'linear'; {why}"):
        update(task, watch, 0, [make_batch()])


def test_a_loss_function_that_breaks_is_told_from_the_modules(tmp_path: Path) -> None:
    task = make_task()
    task.breaks = "loss"
    watch = DebugWatch(tmp_path)
    watch.attach(task)
    with pytest.raises(RunError, match=r"Block 'blocks\.1' \(gradient of output; made by what came after it"):
        update(task, watch, 0, [make_batch()])


def test_a_loss_that_is_not_finite_although_every_module_is(tmp_path: Path) -> None:
    task = make_task()
    watch = DebugWatch(tmp_path)
    watch.attach(task)
    watch.before_update(make_batch(), 3)
    task.loss(make_batch()).sum.backward()
    with pytest.raises(RunError, match="the loss function, outside any module"):
        watch.after_backward(float("nan"), 3)


def test_minus_infinity_in_a_mask_is_no_failure() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return (x + mask).softmax(-1)

    model = nn.Sequential(nn.Linear(2, 2))
    model.append(Masked())
    trace = Trace(model)
    trace.start(count_zeros=False)
    model[1](model[0](torch.ones(1, 2)), mask=torch.tensor([0.0, float("-inf")])).sum().backward()
    assert find_origin(trace.read(), model) is None


def test_two_readers_of_one_tensor_are_both_named() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.left, self.right = nn.Linear(2, 2), Double(), Double()

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.left(x) + self.right(x)

    model = Fork()
    model.left.breaks = "backward"
    trace = Trace(model)
    trace.start(count_zeros=False)
    model(torch.ones(1, 2)).sum().backward()
    origin = find_origin(trace.read(), model)
    assert origin is not None and origin.module == "left" and "right" in origin.why


def test_the_dump_reproduces_the_loss(tmp_path: Path) -> None:
    """Dropout and all, over two accumulated batches."""
    task = make_task()
    optimizer = torch.optim.Adam(task.parameters())
    watch = DebugWatch(tmp_path)
    watch.attach(task, optimizer)
    batches = [make_batch(1), make_batch(2)]
    update(task, watch, 0, batches)
    optimizer.step()

    task.zero_grad()
    total = 0.0
    for batch in batches:
        watch.before_update(batch, 1)
        output = task.loss(batch)
        output.sum.backward()
        total += output.sum.item()
    task.blocks[0].linear.weight.grad[0, 0] = float("nan")
    with pytest.raises(RunError, match=r"step-1\.pt"):
        watch.after_backward(total / 12, 1)

    raw = torch.load(tmp_path / "step-1.pt", weights_only=True)
    assert raw["step"] == 1 and raw["loss"] == pytest.approx(total / 12)
    dump = load_dump(tmp_path / "step-1.pt")
    assert torch.equal(dump["batches"][1].items, batches[1].items) and dump["batches"][0].ratings is None
    assert dump["optimizer"]["state"][0]["step"] == 1
    assert replay_loss(tmp_path / "step-1.pt", make_task(seed=99)) == pytest.approx(total / 12, rel=1e-6)
    dump["rng"][0]["cpu"] = torch.manual_seed(5).get_state()  # and dropout did matter
    torch.save({**raw, "rng": dump["rng"]}, tmp_path / "other.pt")
    assert replay_loss(tmp_path / "other.pt", make_task()) != pytest.approx(total / 12, rel=1e-3)


def test_a_dump_that_cannot_be_written_does_not_hide_the_finding(tmp_path: Path) -> None:
    (tmp_path / "debug").write_text("a file where the folder should be")
    task = make_task()
    task.blocks[0].twice.breaks = "forward"
    watch = DebugWatch(tmp_path / "debug")
    watch.attach(task)
    with pytest.raises(RunError, match=r"blocks\.0\.twice.*could not be dumped"):
        update(task, watch, 0, [make_batch()])


def test_a_file_that_is_no_dump_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "step-1.pt").write_bytes(b"nothing")
    with pytest.raises(RunError, match="not a dump"):
        load_dump(tmp_path / "step-1.pt")


def test_watching_changes_nothing(tmp_path: Path) -> None:
    def losses(watched: bool) -> tuple[list[float], Tensor]:
        task = make_task()
        optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
        watch = DebugWatch(tmp_path, DebugOptions(every=2))
        if watched:
            watch.attach(task, optimizer)
        found = []
        for step in range(5):
            if watched:
                found.append(update(task, watch, step, [make_batch(step)]))
            else:
                task.zero_grad()
                output = task.loss(make_batch(step))
                output.sum.backward()
                for parameter in task.parameters():
                    parameter.grad /= 6
                found.append(output.sum.item() / 6)
            optimizer.step()
        return found, task.item_embedding.weight.detach().clone()

    plain, watched = losses(False), losses(True)
    assert plain[0] == watched[0] and torch.equal(plain[1], watched[1])
    assert not list(tmp_path.iterdir())


def test_detached_nothing_is_left_on_the_model(tmp_path: Path) -> None:
    task = make_task()
    watch = DebugWatch(tmp_path)
    watch.attach(task)
    watch.detach()
    for module in task.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert all(not parameter._backward_hooks for parameter in task.parameters())
    with pytest.raises(RuntimeError, match="attach"):
        watch.before_update(make_batch(), 0)


def test_reports_come_at_intervals_with_norms_and_activations(tmp_path: Path) -> None:
    written: list[tuple[str, dict[str, Any]]] = []
    watch = DebugWatch(tmp_path, DebugOptions(every=3), lambda kind, **values: written.append((kind, values)))
    task = make_task()
    task.eval()
    watch.attach(task)
    for step in range(5):
        update(task, watch, step, [make_batch()])
    assert [(kind, values["step"]) for kind, values in written] == [("debug", 0), ("debug", 3)]
    values = written[0][1]
    embedded = task.item_embedding(make_batch().items)
    assert values["max_abs/item_embedding"] == pytest.approx(embedded.abs().max().item())
    assert values["zeros/item_embedding"] == 0.0
    assert set(gradient_norms(task)) == {"grad_norm/item_embedding", "grad_norm/blocks.0", "grad_norm/blocks.1"}
    expected = torch.cat([p.grad.flatten() for p in task.blocks[0].parameters()]).norm().item()
    assert values["grad_norm/blocks.0"] == pytest.approx(expected, rel=1e-5)


def test_the_share_of_zeros_is_that_of_the_outputs() -> None:
    model = nn.Sequential(nn.ReLU())
    trace = Trace(model)
    trace.start(count_zeros=True)
    model(torch.tensor([-1.0, -2.0, -3.0, 4.0]))
    found = activations(trace.read())
    assert found["zeros/0"] == 0.75 and found["max_abs/0"] == 4.0


def test_validation_between_updates_is_not_recorded(tmp_path: Path) -> None:
    task = make_task()
    watch = DebugWatch(tmp_path)
    watch.attach(task)
    update(task, watch, 0, [make_batch()])
    task.blocks[0].twice.breaks = "forward"
    with torch.no_grad():
        task.loss(make_batch())
    task.blocks[0].twice.breaks = ""
    update(task, watch, 1, [make_batch()])


def test_parameter_groups() -> None:
    assert parameter_group("blocks.0.s5.Lambda") == "blocks.0"
    assert parameter_group("item_embedding.weight") == "item_embedding"
    assert parameter_group("scale") == "scale"


def test_the_alarm_rings_once_a_window_after_the_first_epoch() -> None:
    alarm = LossAlarm(window=10, change=1e-3)
    assert not any(alarm.update(5.0, epoch=0) for _ in range(50))
    rings = [alarm.update(5.0, epoch=1) is not None for _ in range(30)]
    assert [index for index, ring in enumerate(rings) if ring] == [9, 19, 29]
    falling = LossAlarm(window=10, change=1e-3)
    assert not any(falling.update(5.0 - 0.01 * step, epoch=1) for step in range(100))
    assert not any(LossAlarm(window=0, change=1.0).update(5.0, epoch=1) for _ in range(30))


def test_the_alarm_becomes_an_event(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written: list[tuple[str, dict[str, Any]]] = []
    options = DebugOptions(every=100, stuck_window=4)
    watch = DebugWatch(tmp_path, options, lambda kind, **values: written.append((kind, values)))
    task = make_task()
    task.eval()
    watch.attach(task)
    for step in range(1, 5):
        update(task, watch, step, [make_batch()], epoch=1)  # the same batch, no optimiser: it cannot move
    assert [kind for kind, _ in written] == ["alarm"]
    assert "has not moved in 4 updates" in written[0][1]["message"]
    assert "has not moved" in caplog.text
