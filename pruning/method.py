"""What a pruning method offers to the command line."""

from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import Self

from gs.strategy import Strategy


@dataclass(frozen=True)
class MethodConfig:
    """Base of the methods' settings: named presets, a schedule that scales, a strategy to build."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    """Settings by preset, as far as they differ from the defaults; the first is the default."""

    @classmethod
    def preset(cls, name: str) -> Self:
        """The settings called `name`."""
        return cls(**cls.PRESETS[name])

    def scaled(self, factor: float) -> Self:
        """The same schedule over `factor` times as many iterations."""
        raise NotImplementedError

    def build(self, *, densify_until: int) -> Strategy:
        """The strategy; `densify_until` is the iteration at which densification ends."""
        raise NotImplementedError


@dataclass(frozen=True)
class NoPruning(MethodConfig):
    """3DGS as published: nothing beyond the densifier removes Gaussians."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"published": {}, "demo": {}}

    def scaled(self, factor: float) -> Self:
        return self

    def build(self, *, densify_until: int) -> Strategy:
        return Strategy()
