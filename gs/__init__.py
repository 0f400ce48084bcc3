"""Training of 3D Gaussians: the model, scenes, rendering, strategies and the trainer.

A public name is imported when it is first asked for, so that a command which needs one does not
wait for the others.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from .idle_threads import let_idle_threads_sleep

if TYPE_CHECKING:
    from .config import PUBLISHED_ITERATIONS as PUBLISHED_ITERATIONS
    from .config import TrainConfig as TrainConfig
    from .data.camera import Camera as Camera
    from .data.scene import Scene as Scene
    from .data.scene import load_scene as load_scene
    from .errors import SplatrimError as SplatrimError
    from .evaluation.views import Images as Images
    from .evaluation.views import evaluate_views as evaluate_views
    from .evaluation.views import mean_scores as mean_scores
    from .files import atomic_write as atomic_write
    from .files import read_json as read_json
    from .files import write_json as write_json
    from .formats.model_file import load_model as load_model
    from .formats.model_file import save_model as save_model
    from .model.gaussians import Gaussians as Gaussians
    from .model.histograms import Histogram as Histogram
    from .model.histograms import unit_histogram as unit_histogram
    from .model.model import Model as Model
    from .model.model import Splats as Splats
    from .model.morton import morton_order as morton_order
    from .model.ply import load_ply as load_ply
    from .model.ply import save_ply as save_ply
    from .model.rates import OptimConfig as OptimConfig
    from .model.rates import step_gain as step_gain
    from .model.renderer import RenderOutput as RenderOutput
    from .model.renderer import render as render
    from .model.rows import gather_rows as gather_rows
    from .model.rows import keep_parts as keep_parts
    from .model.rows import keep_rows as keep_rows
    from .model.specs import ParameterSpec as ParameterSpec
    from .model.view import View as View
    from .program import train as train
    from .ranges import AT_LEAST_ONE as AT_LEAST_ONE
    from .ranges import COUNT as COUNT
    from .ranges import INNER_SHARE as INNER_SHARE
    from .ranges import NOT_NEGATIVE as NOT_NEGATIVE
    from .ranges import POSITIVE as POSITIVE
    from .ranges import PRUNED_SHARE as PRUNED_SHARE
    from .ranges import SHARE as SHARE
    from .ranges import SOME_SHARE as SOME_SHARE
    from .ranges import Range as Range
    from .ranges import check_ranges as check_ranges
    from .run_record import find_model as find_model
    from .schedule import covers as covers
    from .schedule import multiple_in as multiple_in
    from .schema import fields as fields
    from .schema import integer as integer
    from .schema import listed as listed
    from .schema import read_checked as read_checked
    from .seeds import derive_seed as derive_seed
    from .training.observer import Observer as Observer
    from .training.observer import Run as Run
    from .training.start import POST_ITERATIONS as POST_ITERATIONS
    from .training.start import State as State
    from .training.start import without_added as without_added
    from .training.strategy import Population as Population
    from .training.strategy import StepContext as StepContext
    from .training.strategy import Strategy as Strategy
    from .training.trainer import Trainer as Trainer

let_idle_threads_sleep(os.environ)  # counts only before torch is loaded

# Names by the module that defines them.
_HOME = {
    "PUBLISHED_ITERATIONS": "config",
    "TrainConfig": "config",
    "Camera": "data.camera",
    "load_scene": "data.scene",
    "Scene": "data.scene",
    "SplatrimError": "errors",
    "evaluate_views": "evaluation.views",
    "Images": "evaluation.views",
    "mean_scores": "evaluation.views",
    "atomic_write": "files",
    "read_json": "files",
    "write_json": "files",
    "load_model": "formats.model_file",
    "save_model": "formats.model_file",
    "Gaussians": "model.gaussians",
    "Histogram": "model.histograms",
    "unit_histogram": "model.histograms",
    "Model": "model.model",
    "Splats": "model.model",
    "morton_order": "model.morton",
    "load_ply": "model.ply",
    "save_ply": "model.ply",
    "OptimConfig": "model.rates",
    "step_gain": "model.rates",
    "render": "model.renderer",
    "RenderOutput": "model.renderer",
    "gather_rows": "model.rows",
    "keep_parts": "model.rows",
    "keep_rows": "model.rows",
    "ParameterSpec": "model.specs",
    "View": "model.view",
    "train": "program",
    "AT_LEAST_ONE": "ranges",
    "COUNT": "ranges",
    "INNER_SHARE": "ranges",
    "NOT_NEGATIVE": "ranges",
    "POSITIVE": "ranges",
    "PRUNED_SHARE": "ranges",
    "SHARE": "ranges",
    "SOME_SHARE": "ranges",
    "Range": "ranges",
    "check_ranges": "ranges",
    "covers": "schedule",
    "multiple_in": "schedule",
    "fields": "schema",
    "integer": "schema",
    "listed": "schema",
    "read_checked": "schema",
    "find_model": "run_record",
    "derive_seed": "seeds",
    "Observer": "training.observer",
    "Run": "training.observer",
    "POST_ITERATIONS": "training.start",
    "State": "training.start",
    "without_added": "training.start",
    "Population": "training.strategy",
    "StepContext": "training.strategy",
    "Strategy": "training.strategy",
    "Trainer": "training.trainer",
}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
