"""Eight CPU devices, so that sharding is tested on any machine, and programs that compile fast."""

import os

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__[:2] == (0, 10):  # it saves a third of the compilation; later ones lack it
    flags = os.environ.get("XLA_FLAGS", ""), "--xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = " ".join(flags)
