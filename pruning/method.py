"""What a pruning method offers to the command line."""

from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import Self

from gs import SplatrimError, State, Strategy, check_ranges, without_added


@dataclass(frozen=True)
class MethodConfig:
    """Base of the methods' settings: named presets, a schedule that scales, a strategy to build."""

    NAME: ClassVar[str] = ""
    """What `--method` calls it; classes without one are bases."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    """Settings by preset, as far as they differ from the defaults; the first is the default."""

    POST_PRESET: ClassVar[str | None] = None
    """The preset that post-training takes by default; None is the first."""

    PROPERTIES: ClassVar[tuple[str, ...]] = ()
    """Names x of what published .ply files have in properties x_0, x_1, ..., for `adopt`."""

    RUN_SETTINGS: ClassVar[dict[str, dict[str, Any]]] = {}
    """Settings of the run itself (gs.config.TrainConfig) by preset, where a preset changes some."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @classmethod
    def adopt(cls, state: State) -> State:
        """A state of the published code as this method's; any other as it is.

        Args:
            state: What a checkpoint holds (gs.training.checkpoint). Parameters of foreign files
                have the names that they have there.

        Raises:
            SplatrimError: A parameter has a shape that the published code does not write.
        """
        return state

    @classmethod
    def hand_over(cls, state: State, successor: str) -> State:
        """A finished run's state of this method as post-training by `successor` takes it up.

        What the method has added goes.

        Raises:
            SplatrimError: Nothing is left to train.
        """
        return without_added(state)

    @classmethod
    def preset(cls, name: str) -> Self:
        """The settings called `name`."""
        return cls(**cls.PRESETS[name])

    def scaled(self, factor: float) -> Self:
        """The same schedule over `factor` times as many iterations."""
        raise NotImplementedError

    def post_training(self, start: int, iterations: int) -> Self:
        """The same rule for a model that comes in finished.

        Args:
            start: The iteration that the model counts as; training goes on with the next.
            iterations: The last iteration of the run.

        Raises:
            SplatrimError: The method cannot do that, or the run is too short for it.
        """
        name = type(self).__name__.removesuffix("Config")
        raise SplatrimError(f"{name} cannot prune a finished model")

    def build(self, *, densify_until: int) -> Strategy:
        """The strategy; `densify_until` is the iteration at which densification ends."""
        raise NotImplementedError


@dataclass(frozen=True)
class NoPruning(MethodConfig):
    """3DGS as published: nothing beyond the densifier removes Gaussians."""

    NAME: ClassVar[str] = "3dgs"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"published": {}, "demo": {}}

    def scaled(self, factor: float) -> Self:
        return self

    def post_training(self, start: int, iterations: int) -> Self:
        return self

    def build(self, *, densify_until: int) -> Strategy:
        return Strategy()
