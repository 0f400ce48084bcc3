"""Where a run begins if not with the scene's points: a checkpoint, or a model that is finished.

A checkpoint from the midst of a schedule is resumed. A finished model, a .ply or a checkpoint from
the end of its schedule, is post-trained instead: iterations count on from where it ended (a .ply
does not say: 30000, the published length), nothing is densified, every SH degree of a .ply is
active, and the pruning method runs its schedule over what follows. The setting is that of published
fine-tuning from iteration 30000 to 35000 (LightGaussian, MaskGaussian):

    positions go on along their schedule, stretched to the last iteration
    all learning rates fall by 0.95 after every 400 of 5000 iterations
    Adam goes on with a checkpoint's moments, and starts afresh for a .ply
    a parameter that the method adds has zero moments but the model's age, so that Adam corrects no
    bias and its first hundred steps are three to six times the learning rate
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ..config import PUBLISHED_ITERATIONS, TrainConfig
from ..data.scene import Scene
from ..data.visibility import check_points, check_sight
from ..distributed.ranks import Ranks
from ..errors import SplatrimError
from ..formats.model_file import load_model, load_offset
from ..model.gaussians import Gaussians
from ..model.light import NAME as LIGHT
from ..model.model import Model
from ..model.rates import OptimConfig
from ..model.specs import PUBLISHED, ParameterSpec
from ..schedule import multiple_in
from .checkpoint import load_checkpoint
from .checkpoint_shards import load_any, peek_any
from .run_state import RunState
from .strategy import StepContext, Strategy

POST_ITERATIONS = 5000  # after PUBLISHED_ITERATIONS; other lengths in proportion
DECAY = 0.95
DECAY_INTERVAL = 400  # iterations, of POST_ITERATIONS

logger = logging.getLogger("splatrim")

State = dict[str, Any]
"""What a checkpoint holds (gs.training.checkpoint)."""


class Heritage(Protocol):
    """What a method knows of the models that it, or the published code of it, has made."""

    PROPERTIES: ClassVar[tuple[str, ...]]
    """Names x of what published .ply files have in properties x_0, x_1, ..."""

    @classmethod
    def adopt(cls, state: State) -> State:
        """A state of the published code as this method's; any other as it is."""
        ...

    @classmethod
    def hand_over(cls, state: State, successor: str) -> State:
        """A finished run's state of this method as post-training by `successor` takes it up."""
        ...


class Origin(NamedTuple):
    """What the settings of a run depend on before its start is read."""

    step: int
    """Iteration that the model has reached."""
    post_start: int | None
    """Iteration at which post-training begins or began; None where a run is resumed."""

    @property
    def post_end(self) -> int:
        """Last iteration of post-training, unless the user says otherwise."""
        start = self.post_start or self.step
        return start + max(round(start * POST_ITERATIONS / PUBLISHED_ITERATIONS), 1)


def find_origin(ply: Path | None, checkpoint: Path | None) -> Origin | None:
    """Where a run with these flags begins; None for the scene's points.

    A checkpoint that is absent or of another version gives None too: `load_start` refuses it.

    Raises:
        SplatrimError: both are given, or the checkpoint is broken.
    """
    if ply is not None and checkpoint is not None:
        raise SplatrimError("give --start_ply or --start_checkpoint, not both")
    if ply is not None:
        return Origin(PUBLISHED_ITERATIONS, PUBLISHED_ITERATIONS)
    if checkpoint is None or not checkpoint.exists():
        return None
    seen = peek_any(checkpoint)
    if seen is None:
        return None
    step, settings = seen
    if settings.get("post_start") is not None:
        return Origin(step, int(settings["post_start"]))
    schedule = settings.get("optim", {}).get("position_lr_max_steps", PUBLISHED_ITERATIONS)
    return Origin(step, step if step >= schedule else None)


def load_start(
    config: TrainConfig,
    method: str,
    methods: Mapping[str, type[Heritage]],
    ranks: Ranks | None = None,
    *,
    representation: str = "explicit",
) -> State | None:
    """The state for `Trainer(start=...)` that the flags ask for, None for the scene's points.

    Args:
        config: Its start_ply or start_checkpoint is read; post_start says whether to post-train.
        method: The pruning method of the run.
        methods: All methods by name: what they left in a model is theirs to read.
        ranks: Those that train together: of shards each takes its own rows, unless it post-trains.
        representation: Of the run's model: "explicit" (Gaussians) or "neural".

    Raises:
        SplatrimError: absent, broken, no iterations left, or a checkpoint of another method that
            is not finished.
    """
    if config.start_checkpoint is not None and config.start_ply is None:
        _check_representation(config.start_checkpoint, representation)
    if config.start_ply is not None:
        others = [name for heir in methods.values() for name in heir.PROPERTIES]
        path, state = config.start_ply, _ply_state(config.start_ply, others)
    elif config.start_checkpoint is not None:
        path = config.start_checkpoint
        is_explicit = representation == "explicit"
        together = ranks if config.post_start is None else None
        state = load_any(path, together) if is_explicit else load_checkpoint(path, gaussians=False)
    else:
        return None
    for heir in methods.values() if representation == "explicit" else ():
        state = heir.adopt(state)
    if state.get("world_offset") is None:
        state = {**state, "world_offset": (state.get("config") or {}).get("world_offset")}
    step, post_start = state["step"], config.post_start
    if step >= config.iterations:
        raise SplatrimError(
            f"{path} is at iteration {step} of {config.iterations}: give more --iterations"
        )
    if post_start == step:
        former = methods.get(state["method"])
        given = without_added(state) if former is None else former.hand_over(state, method)
        return finished({**given, "shared": _light_or_not(state, given, config.exposure)})
    if state["method"] not in (method, "3dgs"):
        raise SplatrimError(
            f"{path} is a checkpoint of {state['method']}:"
            f" go on with --method {state['method']} instead of {method}"
        )
    return state


def _light_or_not(state: State, given: State, exposure: str) -> dict[str, Tensor]:
    """What is shared of a state as a method has handed it over, with the light that was learnt.

    It goes with --exposure none, and where it is of another kind.
    """
    shared = {k: x for k, x in (given.get("shared") or {}).items() if not k.startswith(f"{LIGHT}.")}
    before = (state.get("config") or {}).get("exposure", "none")
    if exposure == before:
        learnt = state.get("shared") or {}
        shared |= {k: x for k, x in learnt.items() if k.startswith(f"{LIGHT}.")}
    elif before != "none":
        logger.warning(f"the light that --exposure {before} had learnt is not used")
    return shared


def _check_representation(path: Path, wanted: str) -> None:
    """Refuse a checkpoint of another kind of model."""
    seen = peek_any(path)
    made = "explicit" if seen is None else seen[1].get("representation", "explicit")
    if made != wanted:
        raise SplatrimError(
            f"{path} is a checkpoint of a model that is {made}: go on with --representation {made}"
        )


def first_model(
    config: TrainConfig, scene: Scene, start: State | None, device: torch.device
) -> Gaussians:
    """The Gaussians that a run begins with: of a start, or at the scene's points."""
    if start is not None:
        is_shard = bool(start.get("is_shard"))
        if not is_shard:
            check_sight(scene.train, start["params"]["means"], "Gaussians")
        model = Gaussians.from_state(start, device)
        model.is_shard = is_shard
        return model
    points, colors = scene.points, scene.colors
    check_points(points)
    check_sight(scene.train, points, "starting points")
    return Gaussians.from_points(points, colors, sh_degree=config.sh_degree, device=device)


def _ply_state(path: Path, others: Iterable[str]) -> State:
    """A .ply as the state of a finished run, on the CPU."""
    params = load_model(path, others=others)
    n = len(params["means"])
    if n == 0:
        raise SplatrimError(f"{path} holds no Gaussians")
    degree = Gaussians.from_tensors({name: params[name] for name in PUBLISHED}).sh_degree
    offset = load_offset(path)
    state = RunState(
        method="3dgs",
        step=PUBLISHED_ITERATIONS,
        params=params,
        rows={"ids": torch.arange(n, dtype=torch.int32)},
        next_id=n,
        active_sh_degree=degree,
        sh_degree=degree,
        world_offset=offset if any(offset) else None,
    )
    return state.to_dict()


def in_scene(state: State, world_offset: Sequence[float]) -> State:
    """The state with its positions in a scene whose coordinates are smaller by `world_offset`."""
    shift = torch.tensor(world_offset, dtype=torch.float64)
    shift -= torch.tensor(state.get("world_offset") or (0.0, 0.0, 0.0), dtype=torch.float64)
    if not bool(shift.any()):
        return state
    name = "means" if "means" in state["params"] else "anchors"
    places = (state["params"][name].double() - shift).float()
    return {**state, "params": {**state["params"], name: places}}


def finished(state: State) -> State:
    """A finished run's state as the beginning of post-training.

    Randomness, statistics and the old method's state go, and learning rates become those of the
    new settings.
    """
    moments = {name: entry for name, entry in state["optimizer"].items() if name != "lrs"}
    return {
        **state,
        "rows": {"ids": state["rows"]["ids"]},
        "optimizer": moments,
        "strategies": {},
        "sampler": {},
        "rng": {},
        "config": {"batch": (state.get("config") or {}).get("batch", 1)},
        "tracker": None,
    }


def without_added(state: State, keep: Tensor | None = None) -> State:  # keep [N] bool
    """A state with the parameters of 3DGS alone, and of them the rows `keep` only."""

    def rows_of(x: Tensor) -> Tensor:
        return x if keep is None or x.dim() == 0 else x[keep]

    return {
        **state,
        "params": {name: rows_of(state["params"][name]) for name in PUBLISHED},
        "rows": {name: rows_of(x) for name, x in state["rows"].items()},
        "optimizer": {
            name: {key: rows_of(torch.as_tensor(x)) for key, x in entry.items()}
            for name, entry in state["optimizer"].items()
            if name in PUBLISHED
        },
        # poses are those of the training images, whatever the method
        "shared": {k: x for k, x in (state.get("shared") or {}).items() if k.startswith("poses.")},
    }


def add_aged_moments(state: RunState, gaussians: Model) -> dict[str, Any]:
    """The optimizer's state with zero moments, at the model's age, for parameters it lacks."""
    step = torch.tensor(float(state.step))
    added = {
        name: {
            "step": step,
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
        for name, parameter in gaussians.params.items()
        if name not in state.params
    }
    return {**added, **state.optimizer}


class PostRates(Strategy):
    """Learning rates of post-training: times 0.95 after every 400 of 5000 iterations.

    Those that follow a schedule of their own, as positions do, are lowered in the iterations of the
    change alone, as in the published loop.
    """

    name = "post_rates"
    runs_on_several_ranks = True

    def __init__(self, optim: OptimConfig, *, start: int, iterations: int) -> None:
        self.optim, self.start = optim, start
        share = (iterations - start) / POST_ITERATIONS
        self.interval = max(round(DECAY_INTERVAL * share), 1)
        self._extent = 0.0
        self._set = False

    def setup(self, gaussians: Gaussians, *, extent: float, iterations: int, seed: int) -> None:
        self._extent = extent

    def after_backward(self, step: int, ctx: StepContext) -> None:
        decays = (step - self.start) // self.interval
        self._set = True
        for group in ctx.optimizer.param_groups:
            spec: ParameterSpec = group["spec"]
            if not spec.scheduled:
                rate = spec.rate(self.optim, self._extent) * DECAY**decays
                _set_rate(group, group["gain"] * rate)
            elif self._changes_at(step):
                _set_rate(group, float(group["lr"]) * DECAY)

    def phase(self, step: int) -> Hashable | None:
        """None where the host sets rates: at first, and where they change."""
        return None if self._changes_at(step) or not self._set else "between"

    def _changes_at(self, step: int) -> bool:
        return multiple_in(step - self.start, self.interval, self.n_images) is not None


def _set_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
