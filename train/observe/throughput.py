"""How fast a step was, against what the devices could do, and the memory it took."""

from typing import NamedTuple

import jax
from jax.sharding import Mesh

from qwen35_jax.config import ModelConfig
from qwen35_jax.planning.devices import find_device
from train.config import TrainConfig
from train.observe.metrics import Entry
from train.work import flops_per_token


class Throughput(NamedTuple):
    """What turns tokens and seconds into rates."""

    num_devices: int
    flops_per_token: float
    """Of the model, forward and backward, without what is computed twice to save memory."""
    peak_flops_per_second: float | None
    """Of one device in bfloat16; None if unknown."""

    @classmethod
    def of(cls, config: TrainConfig, model_config: ModelConfig, mesh: Mesh) -> "Throughput":
        """Returns the figures of a run.

        Each sequence counts as a single document. Where several are packed, attention does a little less work.
        """
        device = find_device(mesh.devices.flat[0].device_kind)
        work = flops_per_token(config.recipe, model_config)
        return cls(mesh.size, work, None if device is None else device.peak_flops)

    def rates(self, tokens: int, seconds: float) -> dict[str, float]:
        """Returns those fields of an entry that depend on the clock.

        ``fraction_of_peak_flops_per_second`` is the model-FLOPs utilisation (MFU).

        Args:
          tokens: those of documents, without padding.
        """
        per_second = tokens / seconds
        rates = {
            "step_seconds": seconds,
            "tokens_per_second": per_second,
            "tokens_per_device_per_second": per_second / self.num_devices,
        }
        if self.peak_flops_per_second is not None:
            achieved = per_second * self.flops_per_token / self.num_devices
            rates["fraction_of_peak_flops_per_second"] = achieved / self.peak_flops_per_second
        return rates


def memory_in_use() -> Entry:
    """Returns how many bytes the fullest local device holds, and has held at most; nothing where it is unknown."""
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    return {
        f"hbm/{name}": max(each[name] for each in stats)
        for name in ("bytes_in_use", "peak_bytes_in_use", "bytes_limit")
        if stats and all(name in each for each in stats)
    }
