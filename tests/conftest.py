"""Eight CPU devices, so that sharding is tested on any machine, and programs that compile fast."""

import gc
import os

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)

flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__[:2] == (0, 10):  # it saves a third of the compilation; later ones lack it
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(flags)
os.environ.setdefault("PJRT_NPROC", "32")  # with few cores, devices that wait would starve others

gc.freeze()  # what JAX keeps of every trace makes collections long
gc.set_threshold(50_000, 10, 10)
