"""Does distilling a language model save energy, once everything is counted?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callbacks import EnergyCallback, LightningEnergyCallback
    from .measure import measure

__all__ = ["EnergyCallback", "LightningEnergyCallback", "measure"]


def __getattr__(name: str) -> Any:
    """Loaded on first use: the stages' own processes need none of it."""
    if name == "measure":
        from .measure import measure

        globals()[name] = measure  # and not the module of that name
        return measure
    if name in __all__:
        from . import callbacks

        return getattr(callbacks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
