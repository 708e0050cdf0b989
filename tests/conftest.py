"""Eight CPU devices, so that sharding is tested on any machine, and programs that compile fast."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
