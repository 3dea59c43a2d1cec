"""One DeepSpeed engine for one trainable model, built once and used for the whole run.

The contract:

* ``total_steps`` is told, never inferred: the learning-rate schedule spans all iterations.
* ``train_step`` is one optimizer step. Its loss is normalised by the weight (response tokens, or pairs) of all
  micro-batches on all ranks, so accumulation, ZeRO stage and number of ranks do not change the trajectory.
* ``generating`` gives a plain module to sample or score with, whatever the ZeRO stage, and puts everything back.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from raft import distributed
from raft.config import TrainingConfig
from raft.engine.settings import deepspeed_config
from raft.errors import UserError

BatchT = TypeVar("BatchT", bound="WeightedBatch")
Sums = dict[str, float]


class WeightedBatch(Protocol):
    """A micro-batch that knows how much it counts."""

    @property
    def weight(self) -> int: ...

    def to(self: BatchT, device: torch.device) -> BatchT: ...


LossFn = Callable[[nn.Module, Any], tuple[torch.Tensor, Sums]]
"""(model, micro-batch) -> (loss summed over the micro-batch's weight, other sums to report per unit of weight)."""


class Engine:
    """Trains one model.

    Args:
        model: a module on any device whose trainable parameters require gradients, in fp32.
        training: optimizer, schedule, batch and ZeRO settings.
        total_steps: optimizer steps of the whole run.
        bf16: compute in bfloat16 with fp32 master weights; else everything is fp32.
        gradient_checkpointing: recompute activations in the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        training: TrainingConfig,
        *,
        total_steps: int,
        bf16: bool,
        gradient_checkpointing: bool = False,
    ) -> None:
        deepspeed = _import_deepspeed()
        self.training, self.total_steps = training, total_steps
        config = deepspeed_config(training, bf16=bf16)
        self.zero_stage = int(config["zero_optimization"].get("stage", 0))
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        self._checkpointed: list[Any] = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
        model.to(distributed.device())
        self.deepspeed, self.optimizer, _, self.scheduler = deepspeed.initialize(
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=self._make_optimizer,
            lr_scheduler=self._make_scheduler,
            config=config,
        )
        _undo_allocation_step(self.optimizer)

    def _make_optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        t = self.training
        return torch.optim.AdamW(
            parameters,
            lr=t.learning_rate,
            betas=(t.adam_beta1, t.adam_beta2),
            eps=t.adam_epsilon,
            weight_decay=t.weight_decay,
            fused=True,
        )

    def _make_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        from transformers import get_scheduler

        num_warmup = round(self.training.warmup_ratio * self.total_steps)
        try:
            return get_scheduler(self.training.lr_scheduler_type, optimizer, num_warmup, self.total_steps)
        except ValueError as error:
            raise UserError(f"--lr_scheduler_type: {error}") from error

    @property
    def module(self) -> nn.Module:
        """The trained module as it was handed in. Under ZeRO-3 its weights are whole only within :meth:`gathered`."""
        return self.deepspeed.module

    @property
    def num_steps(self) -> int:
        """Optimizer steps taken so far, in all iterations."""
        return self.deepspeed.global_steps

    @property
    def is_done(self) -> bool:
        """Whether all steps of the run are taken."""
        return self.num_steps >= self.total_steps

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.deepspeed.get_lr()[0])

    def evaluates_now(self) -> bool:
        """True every ``eval_steps`` steps and after the last one."""
        every = self.training.eval_steps
        return self.num_steps == self.total_steps or bool(every and self.num_steps % every == 0)

    def train_step(self, micro_batches: Sequence[WeightedBatch], loss_fn: LossFn) -> Sums:
        """Take one optimizer step.

        Args:
            micro_batches: this rank's share; the same number on every rank. One of weight 0 takes part in the
                collective work and adds nothing.
            loss_fn: gives the summed loss of a micro-batch and further sums to report.

        Returns:
            ``loss`` and the further sums, each per unit of weight over all ranks; ``learning_rate`` used;
            ``grad_norm`` before clipping; ``weight``.

        Raises:
            FloatingPointError: if the loss is not finite. The step is not taken.
        """
        total = distributed.all_reduce_sum([float(sum(batch.weight for batch in micro_batches))])[0]
        assert total > 0, "an optimizer step needs at least one row that counts"
        learning_rate = self.learning_rate
        sums: dict[str, float] = {"loss": 0.0}
        self.deepspeed.train()
        for i, batch in enumerate(micro_batches):
            self.deepspeed.set_gradient_accumulation_boundary(i == len(micro_batches) - 1)
            loss_sum, others = loss_fn(self.deepspeed, batch.to(distributed.device()))
            counts = float(batch.weight > 0)
            # DeepSpeed averages gradients over ranks; the factor world_size makes that a sum.
            loss = loss_sum * (counts * distributed.world_size() / total)
            self.deepspeed.backward(loss)
            for name, value in {"loss": loss_sum.item(), **others}.items():
                sums[name] = sums.get(name, 0.0) + counts * value
        reduced = dict(zip(sums, distributed.all_reduce_sum(list(sums.values())), strict=True))
        if not all(value == value and abs(value) != float("inf") for value in reduced.values()):
            raise FloatingPointError(f"step {self.num_steps + 1}: the loss is not finite ({reduced}).")
        grad_norm = self._plain_grad_norm()
        self.deepspeed.step()
        metrics = {name: value / total for name, value in reduced.items()}
        return metrics | {
            "learning_rate": learning_rate,
            "grad_norm": float(self.deepspeed.get_global_grad_norm() or 0.0) if grad_norm is None else grad_norm,
            "weight": total,
        }

    def _plain_grad_norm(self) -> float | None:
        """Norm of the gradient where DeepSpeed steps a bare torch optimizer (ZeRO-0 in fp32) and does not report it."""
        if not isinstance(self.optimizer, torch.optim.Optimizer) or hasattr(self.optimizer, "_global_grad_norm"):
            return None
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients).item()

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[WeightedBatch], loss_fn: LossFn) -> Sums:
        """Mean of the loss and the further sums over micro-batches of all ranks (the same number on every rank)."""
        sums: dict[str, float] = {"loss": 0.0}
        self.deepspeed.eval()
        for batch in micro_batches:
            loss_sum, others = loss_fn(self.deepspeed, batch.to(distributed.device()))
            for name, value in {"loss": loss_sum.item(), **others}.items():
                sums[name] = sums.get(name, 0.0) + float(batch.weight > 0) * value
        weight = float(sum(batch.weight for batch in micro_batches))
        *values, total = distributed.all_reduce_sum([*sums.values(), weight])
        return {name: value / total for name, value in zip(sums, values, strict=True)}

    @contextmanager
    def gathered(self) -> Iterator[nn.Module]:
        """The module with whole weights on every rank, for reading and for running it outside of training."""
        with ExitStack() as stack:
            if self.zero_stage == 3:
                import deepspeed

                # One gather for the whole phase. The stage's hooks would partition each layer again after its
                # first use, and would hang where ranks run different numbers of forward passes.
                stack.enter_context(deepspeed.zero.GatheredParameters(list(self.module.parameters())))
                self._remove_hooks()
                stack.callback(self._restore_hooks)
            yield self.module

    def _remove_hooks(self) -> None:
        offload = self.deepspeed.optimizer.parameter_offload
        for parameter in self.module.parameters():
            parameter.ds_active_sub_modules.clear()  # type: ignore[attr-defined]
        # The first one compares traces among ranks whenever a forward pass starts.
        for hook in [offload.fwd_pre_hook, *offload.forward_hooks, *offload.backward_hooks]:
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []

    def _restore_hooks(self) -> None:
        offload = self.deepspeed.optimizer.parameter_offload

        def start_of_forward(module: nn.Module, *args: Any) -> None:
            offload.get_param_coordinator().reset_step()

        # As in DeepSpeed's setup_zero_stage3_hooks, which would also grow a global stack each time.
        offload.fwd_pre_hook = offload.module.register_forward_pre_hook(start_of_forward)
        offload._register_deepspeed_module(offload.module)

    @contextmanager
    def generating(self) -> Iterator[nn.Module]:
        """The plain module for sampling and scoring: eval mode, no gradients, whole weights, no recomputation.

        Everything is as before afterwards, also after an exception.
        """
        was_training = self.module.training
        with torch.no_grad(), self.gathered() as module, self._without_forward_hooks():
            self._set_checkpointing(False)
            module.eval()
            try:
                yield module
            finally:
                module.train(was_training)
                self._set_checkpointing(True)

    @contextmanager
    def _without_forward_hooks(self) -> Iterator[None]:
        """Take DeepSpeed's own hooks off the module: they time training steps, and wait for the GPU at each call.

        A decoding step would wait each time, and a wait can not be recorded in a CUDA graph.
        """
        removed = []
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            hooks = getattr(self.module, kind)
            for key in [key for key, hook in hooks.items() if hook.__module__ == "deepspeed.runtime.engine"]:
                removed.append((hooks, key, hooks.pop(key)))
        try:
            yield
        finally:
            for hooks, key, hook in removed:
                hooks[key] = hook

    def _set_checkpointing(self, enabled: bool) -> None:
        # By hand: each call of transformers' gradient_checkpointing_enable leaves another hook on the embeddings.
        for module in self._checkpointed:
            module.gradient_checkpointing = enabled

    def save_state(self, directory: Path) -> None:
        """Write weights, optimizer, schedule and this rank's random state below ``directory``, on every rank."""
        with _quiet():
            self.deepspeed.save_checkpoint(str(directory), tag="engine", exclude_frozen_parameters=True)
        torch.save(_random_state(), directory / f"random-{distributed.rank()}.pt")

    def load_state(self, directory: Path) -> None:
        """Restore what :meth:`save_state` wrote.

        Raises:
            UserError: if it was written by another number of ranks.
        """
        random_file = directory / f"random-{distributed.rank()}.pt"
        num_ranks = len(list(directory.glob("random-*.pt")))
        if num_ranks != distributed.world_size():
            raise UserError(
                f"--resume: {directory} was written by {num_ranks} processes, this run has {distributed.world_size()}; "
                "resume with the same number."
            )
        with _quiet():
            path, _ = self.deepspeed.load_checkpoint(str(directory), tag="engine", load_module_strict=False)
        if path is None:
            raise UserError(f"--resume: {directory} is not a checkpoint that DeepSpeed can read.")
        _set_random_state(torch.load(random_file, weights_only=True))


def _undo_allocation_step(optimizer: Any) -> None:
    """Forget the step without gradients that DeepSpeed takes to allocate Adam's moments under bf16 and ZeRO-0.

    It counts in Adam's bias correction, which makes the first real steps a quarter too small, and decays the masters.
    """
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    if isinstance(optimizer, FP16_UnfusedOptimizer):
        optimizer.optimizer.state.clear()
        for masters, weights in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
            for master, weight in zip(masters, weights, strict=True):
                master.data.copy_(weight.data)


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _import_deepspeed() -> Any:
    """Import DeepSpeed without its chatter and without compiling anything."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with _quiet():
        import deepspeed
    # On CPUs DeepSpeed compiles a shared-memory all-reduce at start-up (a minute, and a compiler must be there).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon_uncompiled()
    distributed.initialize()
    deepspeed.init_distributed(dist_backend=distributed._backend(), verbose=False)
    return deepspeed


def _import_muon_uncompiled() -> None:
    """Import an optimizer that nothing here uses, but that the first step under ZeRO would import.

    DeepSpeed decorates it with torch.compile, which imports the whole compiler: 3 s of a core, 40 s from a cold disk.
    """
    from deepspeed.runtime import compiler

    original, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        with suppress(ImportError):
            import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = original
