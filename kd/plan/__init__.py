"""The plan of a run: its memory by phase, what fits, and what a step costs, before anything is loaded."""

from kd.plan.account import Account
from kd.plan.live_bytes import LiveBytes
from kd.plan.run import FakeModels, Machine

__all__ = ["Account", "FakeModels", "LiveBytes", "Machine"]
