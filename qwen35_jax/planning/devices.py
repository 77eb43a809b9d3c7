"""The published peak figures of TPU chips, against which utilisation and time are estimated."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """The peak figures of one chip.

    Attributes:
      name: Google's short name, which is also the start of a topology ("v5e" in "v5e:2x4").
      peak_flops: bfloat16 operations per second; a multiplication and an addition are two.
      hbm_bytes: memory that a program may use. It is a little less than is installed: libtpu 0.0.52 states this limit
        when it refuses a program.
      hbm_bytes_per_second: reads and writes together.
      clock_hz: cycles per second. They follow from the peak and the matrix units: four of 128 x 128 in a v5e, eight in
        a v5p, four of 256 x 256 in a v6e (a later version of its page says two, which is too few for its peak).
      ici_bytes_per_second: all links to other chips together, in one direction. The documentation gives either this
        figure (1600 Gbps = 200 GB/s for v5e) or its double as "bidirectional". A collective over one axis of a mesh
        uses the two links of one axis of the torus: half of this figure on v5e and v6e, a third on v5p.

    Source: the pages "TPU v5e", "TPU v5p" and "TPU v6e" of the Cloud TPU documentation. The
    page of v6e has given 1600 and 1640 GB/s for its memory, and 3200 and 3584 Gbps for its links.
    """

    name: str
    peak_flops: float
    hbm_bytes: int
    hbm_bytes_per_second: float
    ici_bytes_per_second: float
    clock_hz: float


_GIB = 2**30

DEVICES = (
    Device("v5e", 197e12, int(15.75 * _GIB), 819e9, 200e9, 1.503e9),
    Device("v5p", 459e12, int(95.73 * _GIB), 2765e9, 600e9, 1.75e9),
    Device("v6e", 918e12, int(31.24 * _GIB), 1640e9, 400e9, 1.75e9),
)

# jax.Device.device_kind, in lower case. JAX calls a v5p "TPU v5".
_KINDS = {"v5 lite": "v5e", "v5": "v5p", "v6 lite": "v6e"}


def find_device(name: str) -> Device | None:
    """Returns the chip that ``name`` means, or None if it is not one of ``DEVICES``.

    Args:
      name: a ``device_kind`` of JAX ("TPU v5 lite") or a topology, with or without its shape ("v5e", "v5e:2x4").
    """
    kind = name.lower().removeprefix("tpu ").split(":")[0].strip()
    kind = _KINDS.get(kind, kind)
    return next((device for device in DEVICES if device.name == kind), None)
