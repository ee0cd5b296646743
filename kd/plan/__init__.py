"""The plan of a run: its memory by phase, what fits, and what a step costs, before anything is loaded."""

from kd.plan.account import Account, FakeModels, Machine
from kd.plan.live_bytes import LiveBytes

__all__ = ["Account", "FakeModels", "LiveBytes", "Machine"]
