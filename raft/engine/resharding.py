"""Loading a ZeRO checkpoint on another number of ranks: the parts of the optimizer state are cut anew.

Under ZeRO each rank holds a part of the fp32 weights and of Adam's moments, and DeepSpeed saves one file a rank. Stages
1 and 2 lay all weights end to end and cut that into equal parts; stage 3 cuts each weight into equal parts, and lays a
rank's parts end to end. DeepSpeed loads them on the same number of ranks alone. Its universal checkpoints would need
every checkpoint written twice more, by weight; here each rank maps the files and copies what is now its own.

Without ZeRO every rank holds all of it: nothing is cut, and nothing of this is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from glob import glob
from itertools import accumulate
from typing import Any

import torch
from torch.utils.serialization import config as serialization

from raft import distributed
from raft.errors import UserError

Part = Mapping[str, Any]
"""What one rank has saved of the optimizer."""
MOMENTS = ("exp_avg", "exp_avg_sq")


@contextmanager
def cutting_anew(engine: Any) -> Iterator[None]:
    """Within this, DeepSpeed's engine loads a ZeRO checkpoint of any number of ranks.

    Raises:
        UserError: on loading, if the optimizer state is laid out in a way that is not known here.
    """
    # Of stage 3 each rank has such a file; weights are not in it, and the rest of it is alike.
    override: dict[str, Any] = {
        "_get_all_ckpt_names": lambda *place: glob(engine._get_ckpt_name(*place, "*", "0")),
        "_load_zero_checkpoint": partial(_load, engine),
    }
    vars(engine).update(override)
    try:
        yield
    finally:
        for name in override:
            del vars(engine)[name]


def _load(engine: Any, directory: str, tag: str, load_optimizer_states: bool = True) -> bool:
    """In place of DeepSpeed's function of the same arguments."""
    optimizer = engine.optimizer
    names = engine._get_all_zero_checkpoint_names(directory, tag, engine.bfloat16_enabled())
    with serialization.patch({"load.mmap": True}):  # type: ignore[attr-defined]
        files = [engine.checkpoint_engine.load(name, map_location="cpu") for name in names]
    parts = [file["optimizer_state_dict"] for file in files]
    if engine.zero_nvme_offload_optimizer():
        raise _unknown("it is offloaded to NVMe")
    own = _own_of_weights(optimizer, parts) if engine.zero_optimization_stage() == 3 else _own_of_row(optimizer, parts)
    optimizer.load_state_dict(
        {distributed.rank(): own},  # it takes the item of this rank
        load_optimizer_states=load_optimizer_states,
        load_from_fp32_weights=engine.zero_load_from_fp32_weights(),
    )
    return True


def _own_of_row(optimizer: Any, parts: Sequence[Part]) -> dict[str, Any]:
    """This rank's part under ZeRO 1 and 2, where weights (and padding, at the end) lie in one row."""
    if getattr(optimizer, "round_robin_gradients", True):
        raise _unknown("weights are dealt out to the ranks (round_robin_gradients)")
    if not isinstance(parts[0]["base_optimizer_state"], dict):
        raise _unknown("it was saved with elastic_checkpoint")
    rows: list[torch.Tensor] = []
    states: dict[int, dict[str, Any]] = {}
    for group, weights in enumerate(optimizer.single_partition_of_fp32_groups):
        length = sum(p.numel() for p in optimizer.round_robin_bit16_groups[group])
        length += sum(optimizer.round_robin_bit16_padding[group])
        row = [part["single_partition_of_fp32_groups"][group] for part in parts]  # saved without padding at the end
        if sum(piece.numel() for piece in row) != length:
            raise _unknown("its parts do not add up to the weights")
        cut = partial(piece_of, start=distributed.rank() * weights.numel(), length=weights.numel(), end=length)
        rows.append(cut(row))
        saved = [part["base_optimizer_state"]["state"].get(group, {}) for part in parts]
        states[group] = {key: cut([one[key] for one in saved]) for key in MOMENTS if key in saved[0]} | _rest(saved[0])
    base = {**parts[0]["base_optimizer_state"], "state": {group: state for group, state in states.items() if state}}
    return {**parts[0], "single_partition_of_fp32_groups": rows, "base_optimizer_state": base}


def _own_of_weights(optimizer: Any, parts: Sequence[Part]) -> dict[str, Any]:
    """This rank's part under ZeRO 3, where each weight is cut into equal parts (with padding in the last ones)."""
    groups, sizes = optimizer.fp16_groups, [p.ds_numel for group in optimizer.fp16_groups for p in group]
    shares = [-(-size // len(parts)) for size in sizes]
    if any(sum(flat.numel() for flat in part["fp32_flat_groups"]) != sum(shares) for part in parts):
        raise _unknown("its parts do not add up to the weights")
    starts = [0, *accumulate(shares)]

    def cut(flats: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """From the saved flat groups of every rank to this rank's."""
        own, weight = [], 0
        for group in groups:
            pieces = []
            for parameter in group:
                row = [_narrow(flat, starts[weight], shares[weight]) for flat in flats]
                length = parameter.partition_numel()
                pieces.append(piece_of(row, start=distributed.rank() * length, length=length, end=sizes[weight]))
                weight += 1
            own.append(torch.cat(pieces))
        return own

    saved = [part["optimizer_state_dict"]["state"] for part in parts]
    states: dict[int, dict[str, Any]] = {}
    if saved[0]:  # there is no state before the first step
        moments = {key: cut([[one[i][key] for i in sorted(one)] for one in saved]) for key in MOMENTS}
        for i in range(len(groups)):
            states[i] = {key: moments[key][i] for key in MOMENTS} | _rest(saved[0][0])
    hyperparameters, *others = parts[0]["optimizer_state_dict"]["param_groups"]
    assert not others, "the engine makes one group of parameters"
    base = {"state": states, "param_groups": [{**hyperparameters, "params": list(range(len(groups)))}]}
    weights = cut([part["fp32_flat_groups"] for part in parts])
    return {**parts[0], "fp32_flat_groups": weights, "optimizer_state_dict": base}


def piece_of(row: Sequence[torch.Tensor], *, start: int, length: int, end: int) -> torch.Tensor:
    """Copy ``length`` elements from ``start`` on of flat tensors that lie end to end; zeros from ``end`` on."""
    piece, offset = torch.zeros(length, dtype=row[0].dtype), 0
    for tensor in row:
        low, high = max(start, offset), min(start + length, offset + tensor.numel(), end)
        if low < high:
            piece[low - start : high - start] = tensor[low - offset : high - offset]
        offset += tensor.numel()
    return piece


def _narrow(flats: Sequence[torch.Tensor], start: int, length: int) -> torch.Tensor:
    """A view of some elements of flat tensors that lie end to end; all of them are within one tensor."""
    for flat in flats:
        if start < flat.numel():
            return flat[start : start + length]
        start -= flat.numel()
    raise AssertionError("beyond the end")


def _rest(state: Part) -> dict[str, Any]:
    """What is alike on all ranks (the number of steps); copied, since torch may count on in the saved tensor."""
    return {k: v.clone() if torch.is_tensor(v) else v for k, v in state.items() if k not in MOMENTS}


def _unknown(why: str) -> UserError:
    return UserError(
        f"--resume: on another number of processes the optimizer state can not be divided anew, because {why}; resume "
        "with the same number."
    )
