"""What a DeepSpeed engine holds for one trained model, in bytes of one process.

The coefficients are those of DeepSpeed 0.19 with torch's AdamW, counted tensor by tensor (tests/planning). Letters:
P parameters, T of them trained, S = T / processes (a rank's share), w bytes of a number in the compute precision.
"""

from __future__ import annotations

from dataclasses import dataclass

REDUCED_AT_ONCE = 500_000_000
"""Default of ``reduce_bucket_size``."""
UNSHARDED_AT_ONCE = 25_000_000
"""Gradients that are joined in one buffer without ZeRO; a single one may be larger."""
LIVE_AT_ONCE = 1_000_000_000
"""Default of ZeRO-3's ``stage3_max_live_parameters``."""


@dataclass(frozen=True)
class Engine:
    """What decides how much an engine holds.

    Attributes:
        num_parameters: P, frozen ones included.
        num_trained: T.
        width: w; 4 in fp32, 2 in bf16.
        stage: ZeRO stage.
        num_processes: that share optimizer state from stage 1 on, gradients from 2 on, weights at 3.
        accumulates: whether an optimizer step has more than one micro-batch.
        bucket: DeepSpeed's ``reduce_bucket_size``, in numbers.
        whole_bucket: whether a bucket takes its full size, as on a GPU; else the part that is written to.
        offloads: whether masters and moments are in host memory.
    """

    num_parameters: int
    num_trained: int
    width: int = 4
    stage: int = 0
    num_processes: int = 1
    accumulates: bool = False
    bucket: int = REDUCED_AT_ONCE
    whole_bucket: bool = False
    offloads: bool = False


@dataclass(frozen=True)
class EngineBytes:
    """Bytes of one process.

    Attributes:
        weights: in the compute precision, as they rest between steps.
        masters: fp32 copies of trained weights.
        moments: Adam's two, in fp32, from the first step on.
        buffers: gradients and buckets that stay between steps.
        first_pass: gradients of earlier micro-batches that are there while the last one is at work.
        reducing: beyond all of these, when the backward pass is over and gradients are reduced.
        stepping: beyond all of these but ``first_pass``, in the optimizer's step.
        gathered: whole weights besides the own part, while sampling or scoring (stage 3).
        building: beyond weights, while the engine is made.
        bucket: allocated as a whole when a backward pass begins; gradients then go into it one by one.
        host: of masters, moments and their gradients, what is in host memory by offloading.
    """

    weights: int
    masters: int
    moments: int
    buffers: int
    first_pass: int
    reducing: int
    stepping: int
    gathered: int
    building: int
    bucket: int = 0
    host: int = 0

    @property
    def resting(self) -> int:
        """Between two steps, on the device."""
        return self.weights + self.masters + self.moments + self.buffers - self.host


def engine_bytes(engine: Engine) -> EngineBytes:
    """Bytes that one process holds at each point of a step."""
    return (_unsharded, _sharded_optimizer, _sharded_optimizer, _sharded_weights)[engine.stage](engine)


def _unsharded(e: Engine) -> EngineBytes:
    gradients, copies = e.width * e.num_trained, 0 if e.width == 4 else 4 * e.num_trained
    joined = e.width * min(e.num_trained, UNSHARDED_AT_ONCE)
    return EngineBytes(
        weights=e.width * e.num_parameters,
        masters=copies,
        moments=8 * e.num_trained,
        buffers=0,
        first_pass=gradients if e.accumulates else 0,
        reducing=gradients + joined - (gradients if e.accumulates else 0),
        stepping=gradients + copies,
        gathered=0,
        # A first step without real gradients, so that fp32 masters, moments and gradients are all there.
        building=2 * copies + 8 * e.num_trained + gradients if copies else 0,
    )


def _sharded_optimizer(e: Engine) -> EngineBytes:
    share = -(-e.num_trained // e.num_processes)
    own, filled = e.width * share, e.width * min(e.num_trained, e.bucket)
    bucket = e.width * e.bucket if e.whole_bucket else filled
    copies = 4 * share if e.width < 4 else 0
    # Stage 1 keeps all gradients of earlier micro-batches, and the bucket; stage 2 the rank's part of them.
    earlier = 0 if not e.accumulates else own if e.stage == 2 else e.width * e.num_trained + bucket
    reducing = bucket + max(filled, own)
    optimizer = 12 * share
    return EngineBytes(
        weights=e.width * e.num_parameters,
        masters=4 * share,
        moments=8 * share,
        buffers=0,
        first_pass=earlier,
        reducing=reducing if e.stage == 2 else max(0, reducing - earlier),
        stepping=0 if e.offloads else 2 * own + copies,
        gathered=0,
        building=8 * share,  # weights in one piece beside those in many, then masters and a gradient of zeros
        bucket=bucket if e.whole_bucket and not (e.stage == 1 and earlier) else 0,
        host=optimizer if e.offloads else 0,
    )


def _sharded_weights(e: Engine) -> EngineBytes:
    n = e.num_processes
    share, bucket = -(-e.num_trained // n), e.bucket if e.whole_bucket else min(e.num_trained, e.bucket)
    whole = e.width * (e.num_parameters - -(-e.num_parameters // n))
    return EngineBytes(
        weights=e.width * -(-e.num_parameters // n),
        masters=4 * share,
        moments=8 * share,
        buffers=e.width * (share + bucket),
        first_pass=0,
        reducing=2 * e.width * min(e.num_trained, e.bucket) + min(whole, e.width * LIVE_AT_ONCE),
        stepping=0 if e.offloads else 4 * share + (2 * share if e.width < 4 else 0),
        gathered=whole,
        building=4 * share + e.width * (share + bucket),
        host=12 * share if e.offloads else 0,
    )


def logits_bytes(num_rows: int, num_columns: int, vocabulary: int, width: int) -> int:
    """Bytes of the logits (rows, columns, vocabulary) alone."""
    return num_rows * num_columns * vocabulary * width
