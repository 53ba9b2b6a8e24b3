"""All that knows the authors' published code: its layouts, its checkpoints, and fused forwards for its modules."""

from ssgrl_fast.published.accelerate import accelerate, restore
from ssgrl_fast.published.checkpoint import load_official_checkpoint

__all__ = ["accelerate", "load_official_checkpoint", "restore"]
