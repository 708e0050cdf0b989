"""Every run draws the same examples, unless it is given a seed or a profile.

    python -m pytest tests/sweeps --hypothesis-seed=1
    python -m pytest tests/sweeps --hypothesis-profile=long
"""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fixed", derandomize=True, max_examples=16, database=None, deadline=None, print_blob=False,
    suppress_health_check=[HealthCheck.too_slow],  # an example is compiled
)
settings.register_profile("free", settings.get_profile("fixed"), derandomize=False)
settings.register_profile("long", settings.get_profile("free"), max_examples=500)


def pytest_configure(config: pytest.Config) -> None:
    """Choose the profile; one that does not depend on the seed would take precedence over it."""
    if config.getoption("--hypothesis-profile") is None:
        seed = config.getoption("--hypothesis-seed")
        settings.load_profile("fixed" if seed is None else "free")
