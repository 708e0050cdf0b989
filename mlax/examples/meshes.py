"""Meshes of the devices of this machine, which has as many CPU devices as are asked for."""

import contextlib
import math
import os
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from mlax.errors import expected


def make_mesh(sizes: Sequence[int], names: Sequence[str]) -> Mesh:
    """Return a mesh of automatic axes.

    Where JAX runs on the CPU and has not started yet, that many devices are simulated.

    Raises:
        ValueError: the machine has fewer devices.
    """
    count = math.prod(sizes)
    if count > 1:  # a device that waits for others holds a thread for each array that it sends
        os.environ.setdefault("PJRT_NPROC", str(min(8 * count, 256)))
    simulated: int = getattr(jax.config, "jax_num_cpu_devices")  # its stub does not know it
    if simulated < count:
        with contextlib.suppress(RuntimeError):  # JAX has started, and has the devices that it has
            jax.config.update("jax_num_cpu_devices", count)
    if jax.device_count() < count:
        spelled = " x ".join(f"{name} {size}" for name, size in zip(names, sizes, strict=True))
        what, got = f"{count} devices for a mesh of {spelled}", jax.device_count()
        way_out = "JAX_PLATFORMS=cpu simulates any number in a new process"
        raise ValueError(expected("make_mesh", what, f"{got} of {jax.default_backend()}", way_out))
    return jax.make_mesh(tuple(sizes), tuple(names), (AxisType.Auto,) * len(sizes))
