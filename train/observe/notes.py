"""What a run says at its start about how it trains: the values in use, and where a default decided them."""

from collections.abc import Collection

from train.config import Distillation, Recipe


def find_notes(given: Recipe, settled: Recipe, groups: Collection[str], *, has_mtp_head: bool) -> list[str]:
    """Returns lines about the optimizer, the precision, the MTP head and a teacher that teaches nothing.

    Args:
      given: what the user set.
      settled: the same with defaults decided.
      groups: what trains (``train.settle``).
    """
    return [
        _optimizer(given, settled),
        *_warmup(given, settled),
        _precision(settled),
        *_mtp(settled, groups, has_mtp_head),
        *_own_base(settled),
    ]


def _optimizer(given: Recipe, settled: Recipe) -> str:
    optim, kind = settled.optim, "adapters" if settled.trains_adapters else "whole weights"
    default = f" (the default for {kind})" if given.optim.learning_rate is None else ""
    end = optim.final_fraction * (optim.learning_rate or 0)
    after = "then constant" if optim.schedule == "constant" else f"then {optim.schedule} to {end:g}"
    clipping = "gradients not clipped" if optim.clip_norm is None else f"gradients clipped at norm {optim.clip_norm:g}"
    return (
        f"AdamW: learning rate {optim.learning_rate:g}{default} after a warmup of {optim.warmup} of "
        f"{settled.steps:,} steps, {after}; weight decay {optim.weight_decay:g}, betas {optim.b1:g} and {optim.b2:g}, "
        f"{clipping}"
    )


def _warmup(given: Recipe, settled: Recipe) -> list[str]:
    wanted, used = given.optim.warmup, settled.optim.warmup
    if isinstance(wanted, float) or wanted == used:
        return []
    return [f"optim.warmup={wanted} would outlast the run of steps={settled.steps}; it is cut to {used}"]


def _precision(settled: Recipe) -> str:
    if settled.trains_adapters:
        return f"adapters are held in float32, the weights, which do not train, in {settled.param_dtype}"
    if settled.param_dtype == "bfloat16":
        return (
            "weights are held in bfloat16; updates are rounded at random, so that small ones add up (float32 weights: "
            "--model.param-dtype float32)"
        )
    return "weights are held in float32"


def _mtp(settled: Recipe, groups: Collection[str], has_mtp_head: bool) -> list[str]:
    mtp = settled.objective.mtp
    if not has_mtp_head or "mtp" in groups:
        return []
    if not mtp.weight:
        return ["the MTP head stays as it is, because mtp.weight=0"]
    chosen = f"train={list(settled.train)}"
    if settled.lora is not None:
        chosen = f"lora.targets={list(settled.lora.targets)}"
        chosen += f" without lora.exclude={list(settled.lora.exclude)}" if settled.lora.exclude else ""
    return [
        f"the MTP head stays as it is, because {chosen} leaves it out, but its loss trains the rest; train it too, or "
        "give --mtp.weight 0"
    ]


def _own_base(settled: Recipe) -> list[str]:
    objective = settled.objective
    if not isinstance(objective, Distillation) or not objective.teacher.own_base or objective.loss_weight:
        return []
    if settled.model.adapter is not None:
        return []
    return [
        "the student begins equal to its teacher, because new adapters change nothing and teacher.own_base is given: "
        "at most its MTP head learns; give --loss-weight 1 to learn the labels and stay near the base"
    ]
