"""Eight CPU devices, so that sharding is tested on any machine, and programs that compile fast.

Every worker finds the programs that another one has compiled in a directory of this run.
"""

import gc
import os
import tempfile

import jax

PROGRAMS = "MLAX_TESTS_PROGRAMS"
if "PYTEST_XDIST_WORKER" not in os.environ:
    programs = tempfile.TemporaryDirectory(prefix="mlax-tests-")  # is removed as the run ends
    os.environ[PROGRAMS] = programs.name

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", os.environ[PROGRAMS])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__[:2] == (0, 10):  # it saves a third of the compilation; later ones lack it
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(flags)

gc.freeze()  # what JAX keeps of every trace makes collections long
gc.set_threshold(50_000, 10, 10)
