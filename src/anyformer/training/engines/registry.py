"""The engines by name."""

from __future__ import annotations

from anyformer.model import Transformer
from anyformer.training.engines.base import Engine, Plan
from anyformer.training.engines.group import Group
from anyformer.training.engines.launch import check_engine
from anyformer.training.engines.single import Single


def make_engine(name: str | None, model: Transformer, plan: Plan, group: Group, *, zero_stage: int = 2) -> Engine:
    """The engine that was asked for, and no other.

    Args:
        name: one of ENGINES; None: a single process.
        model: with its first weights, the same on all processes.
        plan: how a step is taken.
        group: the processes.
        zero_stage: what DeepSpeed shards: 1 the optimizer's state, 2 the gradients as well, 3 the weights as well.

    Raises:
        UserError: there is no such engine, it isn't installed, or it does not fit the number of processes.
    """
    check_engine(name, group.processes)
    if name is None:
        return Single(model, plan, group)
    # Each imports a library that takes seconds to load and that the others have no use for.
    if name == "ddp":
        from anyformer.training.engines.ddp import DDP

        return DDP(model, plan, group)
    if name == "fsdp":
        from anyformer.training.engines.fsdp import FSDP

        return FSDP(model, plan, group)
    from anyformer.training.engines.deepspeed import DeepSpeed

    return DeepSpeed(model, plan, group, zero_stage)
