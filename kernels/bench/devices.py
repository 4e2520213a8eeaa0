"""Peak rates of the devices that the roofline times are for. Datasheet figures: a measured copy reaches about 90 %."""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["DEVICES", "Device", "roofline_us"]


class Device(NamedTuple):
    """Peak rates of one device.

    Args:
        bytes_per_second: of its memory.
        flops_per_second: dense bf16 matrix rate, without sparsity.
        multiprocessors: that a grid has to fill.
    """

    bytes_per_second: float
    flops_per_second: float
    multiprocessors: int


# NVIDIA's datasheets: A100 80GB SXM (2021), L40S (2023), H100 SXM (2023), H200 SXM (2024), HGX B200 per GPU (2025);
# rates quoted there "with sparsity" are halved
DEVICES: Mapping[str, Device] = {
    "A100": Device(2.039e12, 312e12, 108),
    "L40S": Device(0.864e12, 362e12, 142),
    "H100": Device(3.35e12, 989e12, 132),
    "H200": Device(4.8e12, 989e12, 132),
    "B200": Device(8.0e12, 2250e12, 148),
}


def roofline_us(bytes_moved: int, flops: int) -> dict[str, float]:
    """Microseconds that a device can't go below: the longer of moving the bytes and doing the FLOPs, by device."""
    return {
        name: round(1e6 * max(bytes_moved / device.bytes_per_second, flops / device.flops_per_second), 3)
        for name, device in DEVICES.items()
    }
