"""How XLA compiles in the tests. Most of a test's time is compilation, and these settings make it a quarter."""

import importlib.metadata


def flags(devices: int) -> str:
    """Returns what XLA_FLAGS is to be for a CPU that looks like so many devices; set it before JAX is imported."""
    # XLA's older code for fusions compiles three times as fast. Newer versions have it no more, and refuse the flag.
    release = importlib.metadata.version("jaxlib").split(".")[:2]
    return common_flags(devices) + " --xla_cpu_use_fusion_emitters=false" * ([*map(int, release)] < [0, 11])


def common_flags(devices: int) -> str:
    """Returns those of the flags that libtpu knows too, whose XLA is newer: it ends the process at any other."""
    return f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
