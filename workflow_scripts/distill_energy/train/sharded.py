"""Weights, gradients and optimiser state split over processes (FSDP2), for models that one GPU cannot hold.

Gathering and splitting in one place: the rest of the loop asks ``to_local``, ``full_tensor`` and ``copy_full_``, which
are the tensor itself where nothing is split.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from transformers import AutoModelForCausalLM

from ..errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from .student import Student


def shard(student: Student, device: str, world: int, source: Any = None) -> None:
    """Split every layer's weights, then what is left (embedding, norm, output layer), over all processes, in place.

    The student comes without weights (on torch's meta device); rank 0 has them in ``source``, a model in the host's
    memory, and sends them part by part: no device ever holds more than its share and one part.
    """
    base = student.lm.base_model
    if not hasattr(base, "layers"):
        raise UserError(f"training.sharding: {type(base).__name__} has no list of layers to split")
    policy = MixedPrecisionPolicy()
    if student.autocast:
        # Gathered and multiplied in bfloat16, kept and summed in float32: what autocast does, at half the traffic.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh(torch.device(device).type, (world,))
    names = {module: name for name, module in student.lm.named_modules()}
    for layer in base.layers:
        _fill(layer, None if source is None else source.get_submodule(names[layer]), device)
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    _fill(student.lm, source, device)
    student.lm.tie_weights()
    fully_shard(student, mesh=mesh, mp_policy=policy)


@torch.no_grad()
def _fill(module: Any, source: Any, device: str) -> None:
    """Give what has no storage yet in ``module`` (weights, buffers, tensors beside them) the values of rank 0's
    ``source``. All processes call it together."""
    theirs = dict(source.named_modules()) if source is not None else {}
    filled: dict[int, Any] = {}  # a weight that two modules share is one

    def received(tensor: Tensor, name: str, attribute: str) -> Tensor:
        if id(tensor) not in filled:
            value = torch.empty_like(tensor, device=device)
            if theirs:
                value.copy_(getattr(theirs[name], attribute))
            torch.distributed.broadcast(value, 0)
            filled[id(tensor)] = (value, tensor)  # the tensor too, so that its id stays its own
        return filled[id(tensor)][0]

    for name, part in module.named_modules():
        for attribute, weight in list(part._parameters.items()):
            if weight is not None and weight.is_meta:
                value = received(weight, name, attribute)
                part._parameters[attribute] = torch.nn.Parameter(value, requires_grad=weight.requires_grad)
        for attributes in (part._buffers, part.__dict__):
            for attribute, tensor in list(attributes.items()):
                if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                    attributes[attribute] = received(tensor, name, attribute)


def one_of_each_layer(config: Any, dtype: torch.dtype, device: str) -> Any:
    """A model with random weights and as few layers as there are kinds of them: to try on a device what a whole one
    would not fit."""
    config = copy.deepcopy(config)
    kinds = getattr(config, "layer_types", None) or [None]
    config.num_hidden_layers = 1 + max(kinds.index(kind) for kind in set(kinds))
    if kinds != [None]:
        config.layer_types = kinds[: config.num_hidden_layers]
    with torch.device(device), torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


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


def to_local(tensor: Any) -> Tensor:
    """This process's part."""
    return tensor.to_local() if is_split(tensor) else tensor


def full_tensor(tensor: Any) -> Tensor:
    """The whole tensor, in every process. All of them call it together."""
    return tensor.full_tensor() if is_split(tensor) else tensor


def as_dtensor(part: Tensor, weight: Any) -> Any:
    """A process's ``part`` as a split tensor of the layout of ``weight``."""
    if not is_split(weight):
        return part

    return DTensor.from_local(
        part, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )


def copy_full_(weight: Any, values: Tensor) -> None:
    """Write the whole ``values``, which every process holds alike, into ``weight``."""
    if not is_split(weight):
        weight.copy_(values)
        return

    alike = DTensor.from_local(values, weight.device_mesh, [Replicate()], run_check=False)
    weight.to_local().copy_(alike.redistribute(placements=weight.placements).to_local())
