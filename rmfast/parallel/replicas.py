"""How processes share a network's work: under DDP each holds it whole, FSDP2 shards it."""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from rmfast.models.network import Network
from rmfast.parallel.process_group import replicas
from rmfast.parallel.world import World

DataParallel = Literal["ddp", "fsdp"]
LEFT_OUT = "_ddp_params_and_buffers_to_ignore"  # DDP's name for the attribute that names weights it is not to reduce


def replicate(network: Network) -> DistributedDataParallel:
    """A network in DDP, whose gradients are summed over ranks."""
    # Adapters that others compute with over the same decoder have gradients of theirs.
    parts = {name for name, _ in network.parts()}
    setattr(network, LEFT_OUT, [name for name, _ in network.named_parameters() if name not in parts])
    # Looking for unused parameters keeps DDP from rebuilding its buckets after the first step: the order of sums never
    # changes, so that a resumed run repeats an uninterrupted one bit for bit.
    module = DistributedDataParallel(network, find_unused_parameters=True, gradient_as_bucket_view=True)
    module.broadcast_buffers = False  # they are constants; torch 2.13 warns of the argument
    module.register_comm_hook(None, _sum_hook)
    replicas.add(module)
    return module


def _sum_hook(_state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Sum gradients over ranks: each rank's loss is already its share of the global mean."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def shard_weights(network: Network, world: World) -> None:
    """Shard a network's weights over ranks; gradients are summed over them."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    dtype = network.decoder.dtype
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, output_dtype=torch.float32)
    # A layer's inputs have their dtypes already: activations that of the weights, RoPE's tables fp32.
    inner = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # What makes scores of hidden states is read as DDP reads it.
    exact = torch.promote_types(dtype, torch.float32)
    wide = MixedPrecisionPolicy(param_dtype=exact, reduce_dtype=torch.float32)
    for layer in network.decoder.layers:
        fully_shard(layer, mesh=mesh, mp_policy=inner)
    ends = [module for name, module in network.named_children() if name in ("norm", "head")]
    together, *_ = fully_shard(ends, mesh=mesh, mp_policy=wide, reshard_after_forward=False)
    fully_shard(network, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(network, "logits")
    # Their weights are read without a call of theirs, which would gather them.
    network.register_forward_pre_hook(lambda *_: together.unshard())
    for module in sharded_modules(network):
        module.set_gradient_divide_factor(1.0)  # sum, not mean
        module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum, which 1.0 would ask for


def sharded_modules(network: nn.Module) -> Iterator[FSDPModule]:
    """Those whose weights FSDP2 gathers together; none of a network that is whole."""
    return (module for module in network.modules() if isinstance(module, FSDPModule))


def first_row(tensor: Tensor, world: World) -> int:
    """First row of this process's part: FSDP2 cuts the first dimension into equal chunks, the last ones shorter."""
    if not isinstance(tensor, DTensor):
        return 0
    rows = tensor.shape[0]
    return min(world.rank * -(-rows // world.size), rows)
