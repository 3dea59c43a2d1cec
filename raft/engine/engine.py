"""One DeepSpeed engine for one trainable model, built once and used for the whole run.

The contract:

* ``total_steps`` is told, never inferred: the learning-rate schedule spans all iterations.
* ``train_step`` is one optimizer step. Its loss is normalised by the weight (response tokens, or pairs) of all
  micro-batches on all ranks, so accumulation, ZeRO stage and number of ranks do not change the trajectory.
* ``generating`` gives a plain module to sample or score with, whatever the ZeRO stage, and puts everything back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from raft import distributed
from raft.config import TrainingConfig
from raft.engine import state
from raft.engine.around_deepspeed import (
    avoid_cudnn_attention,
    dropping_gradient,
    import_deepspeed,
    quiet,
    reduce_in_small_buckets,
    undo_allocation_step,
)
from raft.engine.settings import deepspeed_config
from raft.errors import UserError
from raft.models.loading import fingerprint

BatchT = TypeVar("BatchT", bound="WeightedBatch")
Sums = dict[str, float]


class WeightedBatch(Protocol):
    """A micro-batch that knows how much it counts."""

    @property
    def weight(self) -> int: ...

    def to(self: BatchT, device: torch.device) -> BatchT: ...


LossFn = Callable[[nn.Module, Any], tuple[torch.Tensor, Sums]]
"""(model, micro-batch) -> (loss summed over the micro-batch's weight, other sums to report per unit of weight)."""


class NonfiniteStep(FloatingPointError):
    """A step whose loss or gradient is not finite. It was not taken, on any rank, and its gradient is gone.

    Attributes:
        step: its number, from 1.
        metrics: what a step that is taken reports, as far as it is known.
    """

    def __init__(self, step: int, metrics: Sums) -> None:
        what = "gradient" if all(math.isfinite(v) for k, v in metrics.items() if k != "grad_norm") else "loss"
        super().__init__(f"step {step}: the {what} is not finite (loss {metrics['loss']:g})")
        self.step, self.metrics = step, metrics


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
        deepspeed = import_deepspeed()
        avoid_cudnn_attention()
        self.training, self.total_steps = training, total_steps
        self.initial_weights: str = getattr(model, "raft_base_fingerprint", None) or fingerprint(model)
        self.skipped_in_a_row = 0
        config = deepspeed_config(training, bf16=bf16)
        self.zero_stage = int(config["zero_optimization"].get("stage", 0))
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        self.recomputes = gradient_checkpointing
        self._checkpointed: list[Any] = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
        model.to(distributed.device())
        self.deepspeed, self.optimizer, _, self.scheduler = deepspeed.initialize(
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=self._make_optimizer,
            lr_scheduler=self._make_scheduler,
            config=config,
        )
        undo_allocation_step(self.optimizer)
        if self.zero_stage == 0:
            reduce_in_small_buckets(self.deepspeed)
        if hasattr(self.optimizer, "check_grad_overflow"):
            self.optimizer.check_grad_overflow = True  # in fp32 it would not look where it computes no norm either

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
    def num_skipped_steps(self) -> int:
        """Steps among them that were not taken, because they were not finite."""
        return self.deepspeed.skipped_steps

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
            NonfiniteStep: on all ranks alike, if the loss, another sum or the gradient is not finite.
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
        metrics = {name: value / total for name, value in reduced.items()} | {"learning_rate": learning_rate}
        norm = self._plain_grad_norm()
        is_finite = all(map(math.isfinite, reduced.values())) and (norm is None or math.isfinite(norm))
        is_taken = self._step(drop=not is_finite)
        norm = float(self.deepspeed.get_global_grad_norm() or 0.0) if norm is None else norm
        metrics |= {"grad_norm": norm, "weight": total}
        if not is_taken:
            raise NonfiniteStep(self.num_steps + 1, metrics)
        if not 0 <= norm < math.inf:
            raise FloatingPointError(
                f"step {self.num_steps}: {type(self.optimizer).__name__} of DeepSpeed took a step with a gradient that "
                "is not finite; the weights are lost."
            )
        self.skipped_in_a_row = 0
        return metrics

    def _step(self, *, drop: bool) -> bool:
        """Take the step, unless it is to be dropped or DeepSpeed finds that its gradient is not finite.

        Returns:
            Whether it was taken. The gradient is gone either way; one that was not taken does not count as a step.
        """
        engine = self.deepspeed
        if drop and self._is_bare:
            engine.zero_grad()
            return False
        counts = engine.global_steps, engine.skipped_steps, engine.global_samples
        with dropping_gradient(self.optimizer) if drop else nullcontext():
            engine.step()
        if not engine.was_step_applied():
            engine.global_steps, engine.skipped_steps, engine.global_samples = counts
        return engine.was_step_applied()

    def skip_step(self) -> None:
        """Count a step that was not taken: data and learning rate go on as if it had been."""
        self.deepspeed.global_steps += 1
        self.deepspeed.skipped_steps += 1
        self.skipped_in_a_row += 1
        with quiet():  # the schedule warns where the first step of all is skipped
            self.scheduler.step()

    @property
    def _is_bare(self) -> bool:
        """Whether DeepSpeed steps a bare torch optimizer: ZeRO-0 in fp32. It then looks at no gradient."""
        return isinstance(self.optimizer, torch.optim.Optimizer) and not hasattr(self.optimizer, "_global_grad_norm")

    def _plain_grad_norm(self) -> float | None:
        """Norm of the gradient where DeepSpeed does not report it."""
        if not self._is_bare:
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
        state.save(self, directory)

    def load_state(self, directory: Path) -> None:
        """Restore what :meth:`save_state` wrote, on any number of ranks.

        On another number the weights and the optimizer are the same, and what dropout draws is not.

        Raises:
            UserError: if steps had another number of rows, or the optimizer state can not be divided anew.
        """
        state.load(self, directory)
