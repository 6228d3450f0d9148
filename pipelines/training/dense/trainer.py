"""The training loop over spread blocks: what differs from the loop in which every process holds the whole model.

The processes of a block get the same batches and draw the same random numbers, but for dropout inside a block, of which
each has other columns. The stages know the whole model: it gets the weights before each validation and checkpoint, so
queries are shared out over all processes, and checkpoints are those of one process.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.errors import RunError
from pipelines.training.dense.block_world import BlockWorld
from pipelines.training.dense.options import ParallelOptions
from pipelines.training.dense.parallel_hstu import ParallelBlocks, process_mesh
from pipelines.training.dense.whole_weights import WholeWeights
from pipelines.training.distributed import World
from pipelines.training.optimizers import OptimizerOptions
from pipelines.training.options import TrainingOptions
from pipelines.training.profiling import ProfileWindow
from pipelines.training.trainer import Trainer


class ParallelTrainer(Trainer):
    """A training whose blocks lie in ``parallel.tensor`` processes each.

    Args:
        task: the whole model, alike in all processes; it has ``blocks``.
        arguments: as :class:`Trainer` takes them.
        parallel: how blocks are spread.
        options: as :class:`Trainer` takes them.
        optimizer: likewise.
        checkpoints: likewise.
        world: all processes.
        settings: as :class:`Trainer` takes them.
    """

    def __init__(
        self,
        task: nn.Module,
        *arguments: Any,
        parallel: ParallelOptions,
        options: TrainingOptions,
        optimizer: OptimizerOptions,
        checkpoints: Path,
        world: World,
        **settings: Any,
    ) -> None:
        device = next(task.blocks.parameters()).device  # type: ignore[union-attr]  # the table may lie elsewhere
        mesh = process_mesh(parallel, device.type)
        self.tensor, self.largest_norm = mesh["tensor"], options.grad_clip or float("inf")
        settings["work_of"] = None  # it is counted for whole blocks
        with torch.random.fork_rng(devices=[]):  # random numbers go on as if nothing had been built
            blocks = ParallelBlocks(task.blocks, parallel, self.tensor)  # type: ignore[arg-type]
        self.spread = with_blocks(task, blocks)
        super().__init__(
            self.spread,
            *arguments,
            options=replace(options, grad_clip=0.0),  # of this process' gradients alone: see exchange
            optimizer=optimizer,
            checkpoints=checkpoints,
            world=BlockWorld.of(world, mesh),
            **settings,
        )
        self.profile = ProfileWindow(options, checkpoints.parent / "profile", world.rank)
        task._modules |= {name: module for name, module in self.spread._modules.items() if name != "blocks"}
        self.whole, self.task = WholeWeights(task, self.spread, self.tensor.get_group()), task
        self.norm, self.kept = torch.zeros((), device=device), {}  # type: tuple[Tensor, dict[int, Any]]
        self.optimizer.register_step_pre_hook(lambda *_: self.exchange())
        self.optimizer.register_state_dict_post_hook(lambda _, state: {**state, "state": self.kept})
        self.optimizer.register_load_state_dict_pre_hook(
            lambda made, state: {**state, "state": self.whole.deal_state(made, state["state"])}
        )

    def train_epoch(self) -> None:
        """As ever; the loop knows the whole model's mode alone."""
        self.spread.train()
        super().train_epoch()

    def update(self, group: list[Any]) -> tuple[Tensor, Tensor]:
        """As ever, with the norm of all parts' gradients."""
        mean, _ = super().update(group)
        return mean, self.norm

    def hear(self, total: Tensor, count: int) -> tuple[Tensor, int]:
        """As ever; each of a block's processes has told of the same targets."""
        total, count = super().hear(total, count)
        return total / self.tensor.size(), count // self.tensor.size()

    @torch.no_grad()
    def exchange(self) -> None:
        """Before each update: the same gradients for what all processes of a block hold, then clip by the whole norm.

        Those gradients are computed alike, but a GPU may add in another order, and weights must not drift apart.
        """
        group, size = self.tensor.get_group(), self.tensor.size()
        own = [parameter.grad for parameter in self.whole.dealt if parameter.grad is not None]
        every = [p.grad for p in self.parameters if p.grad is not None and p not in self.whole.dealt]
        squares = sum((grad.square().sum() for grad in own), torch.zeros((), device=self.device))
        message = torch.cat([*(grad.flatten() for grad in every), squares.to(self.parameters[0].dtype).reshape(1)])
        dist.all_reduce(message, group=group)
        *means, squares = torch.split(message, [*(grad.numel() for grad in every), 1])
        for grad, mean in zip(every, means, strict=True):
            grad.copy_(mean.view_as(grad) / size)
            squares = squares + grad.square().sum()
        self.norm = squares.squeeze().sqrt()
        torch._foreach_mul_([*own, *every], (self.largest_norm / (self.norm + 1e-6)).clamp(max=1.0))

    def judge_epoch(self) -> None:
        """As ever, of the whole model."""
        self.whole.collect()
        super().judge_epoch()

    def save(self) -> None:
        """As ever, of the whole model.

        Raises:
            RunError: a part's weights are not finite, or the disk does not take them.
        """
        finite = all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters)
        if not all(self.world.gather(finite)):
            raise RunError(
                "the weights are not finite; the checkpoints before stay",
                where=f"step {self.state.step}",
                fix="lower optimizer.lr, set training.grad_clip, or look with --debug",
            )
        self.whole.collect()
        self.kept = self.whole.collect_state(self.optimizer)
        super().save()
        self.kept = {}

    def put_down(self, random: list[dict[str, Any]]) -> None:
        """As ever; the random state is that of groups, the same in all processes of each."""
        super().put_down(random[:: self.tensor.size()])

    def restore(self, path: Path) -> None:
        """As ever, from whole weights, however many processes had them."""
        super().restore(path)
        self.whole.deal()


def with_blocks(task: nn.Module, blocks: nn.Module) -> nn.Module:
    """``task`` with other blocks; everything else is shared with it, not copied."""
    spread = copy.copy(task)
    spread._modules = {**task._modules, "blocks": nn.ModuleList([blocks])}
    return spread
