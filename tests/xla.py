"""How XLA compiles in the tests. Most of a test's time is compilation, and these settings make it a quarter."""

import importlib.metadata


def flags(devices: int) -> str:
    """Returns what XLA_FLAGS is to be for a CPU that looks like so many devices; set it before JAX is imported."""
    # XLA's older code for fusions compiles three times as fast, and a program in one part takes less than one in
    # 32 parts. Newer versions may not have these, and refuse flags that they do not know.
    release = importlib.metadata.version("jaxlib").split(".")[:2]
    older = " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    return common_flags(devices) + older * ([*map(int, release)] < [0, 11])


def common_flags(devices: int) -> str:
    """Returns those of the flags that libtpu knows too, whose XLA is newer: it ends the process at any other."""
    return f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
