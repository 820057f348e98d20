"""Tensors that stack one for each expert, taken apart."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from octavo.loading.tensor_source import ExpertStack, TensorInMemory, TensorSource, TransformedTensor
from octavo.parts import Into
from octavo.parts.weight_slots import Shard


def unstacked(source: TensorSource, into: Into) -> Iterator[TensorSource]:
    """The tensors that one stacks, read one by one where it is stored as it is."""
    if isinstance(source, ExpertStack):
        change = Tensor.t if into.transform is None else partial(_of_one_expert, into.transform)
        for e in range(source.shape[0]):
            yield TransformedTensor(source.expert(e), change)
    elif into.transform is not None:
        yield from map(TensorInMemory, into.transform(source.read()))
    else:
        for e in range(source.shape[0]):
            yield TensorInMemory(source.part(Shard(((e, e + 1),))).read()[0])


def _of_one_expert(transform: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
    """What a change of stacks `[experts, inputs, outputs]` makes of one `[outputs, inputs]`."""
    return transform(weight.t().unsqueeze(0))[0]


def num_stacked(source: TensorSource, into: Into) -> int | None:
    """For how many experts a tensor is; None where its shape is none of a stack."""
    shape = source.shape
    if into.transform is not None:
        try:
            shape = tuple(into.transform(torch.empty(shape, device="meta")).shape)
        except RuntimeError:  # the transform's reshape does not fit
            return None
    return shape[0] if shape else None
