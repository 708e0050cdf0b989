"""Models on many devices: a plan of which array goes where, checked before a machine is booked."""

from mlax.sharding.planning import Optimizer, Plan, plan
from mlax.sharding.rules import Rules

__all__ = ["Optimizer", "Plan", "Rules", "plan"]
