"""Weights, gradients and optimiser state split over processes (FSDP2), for models that one GPU cannot hold.

Gathering and splitting in one place: the rest of the loop asks ``local``, ``whole`` and ``write``, which are the tensor
itself where nothing is split.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate

from ..errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from .student import Student


def shard(student: Student, device_type: str, world: int) -> None:
    """Split every layer's weights, then what is left (embedding, norm, output layer), over all processes, in place."""
    base = student.lm.base_model
    if not hasattr(base, "layers"):
        raise UserError(f"training.sharding: {type(base).__name__} has no list of layers to split")
    policy = MixedPrecisionPolicy()
    if student.autocast:
        # Gathered and multiplied in bfloat16, kept and summed in float32: what autocast does, at half the traffic.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh(device_type, (world,))
    for layer in base.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(student, mesh=mesh, mp_policy=policy)


@contextlib.contextmanager
def no_gradient_sync(module: Any) -> Iterator[None]:
    """Keep gradients where they are in the backward passes inside."""
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def is_split(tensor: Any) -> bool:
    """Whether a tensor is one process's part of a larger one."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Tensor:
    """This process's part."""
    return tensor.to_local() if is_split(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """The whole tensor, in every process. All of them call it together."""
    return tensor.full_tensor() if is_split(tensor) else tensor


def like(part: Tensor, weight: Any) -> Any:
    """A process's ``part`` as a split tensor of the layout of ``weight``."""
    if not is_split(weight):
        return part

    return DTensor.from_local(
        part, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )


def write(weight: Any, values: Tensor) -> None:
    """Write the whole ``values``, which every process holds alike, into ``weight``."""
    if not is_split(weight):
        weight.copy_(values)
        return

    alike = DTensor.from_local(values, weight.device_mesh, [Replicate()], run_check=False)
    weight.to_local().copy_(alike.redistribute(placements=weight.placements).to_local())
