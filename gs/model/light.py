"""What each photograph did to the light: numbers per image, and per lens, that training learns.

The equations stand in kernels/reference/light.py. A view that was not trained on is shown in the
mean light of those that were, through the same lens if it is known; viewers and .ply files have the
scene without any. Beside a saved model, light.json says all of it by image name, an affine row as
3x4 like exposure.json of 3DGS.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from kernels import LENS_NUMBERS, corrected, neutral_rows

from ..data.camera import Camera
from ..files import write_json
from ..schema import Mismatch, fields, listed, mapped, number, read_checked, text

NAME = "light"  # among what a model shares
FILE = "light.json"
GREY = 0.5  # whose change says how much an image was corrected

Kind = Literal["affine", "ppisp"]


class Shares(Protocol):
    """A model, as far as its light goes."""

    shared: nn.Module

    @property
    def device(self) -> torch.device: ...


class Light(nn.Module):
    """Rows of images, and lenses.

    Args:
        kind: "affine", or "ppisp" for exposure, vignetting and colour of PPISP.
        names: Of the images, by row.
        lenses: The lens of each; "ppisp" learns its vignetting.
    """

    def __init__(self, kind: Kind, names: Sequence[str], lenses: Sequence[str]) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.places = {name: k for k, name in enumerate(names)}
        self.lens_names = list(dict.fromkeys(lenses))
        self.rows = nn.Parameter(neutral_rows(len(names), kind))
        if kind == "ppisp":
            self.lenses = nn.Parameter(torch.zeros(len(self.lens_names), LENS_NUMBERS))
            known = {name: k for k, name in enumerate(self.lens_names)}
            lens_of = torch.tensor([known[name] for name in lenses], dtype=torch.int32)
            # follows from the cameras, so that no checkpoint needs it
            self.register_buffer("lens_of", lens_of, persistent=False)

    @classmethod
    def of_cameras(cls, kind: Kind, cameras: Sequence[Camera]) -> Light:
        """For images that are to be trained on, without any change."""
        return cls(kind, [camera.image_name for camera in cameras], [*map(lens_name, cameras)])

    def forward(
        self,
        colors: Tensor,  # [H, W, 3]
        index: Tensor,  # [1] int32
        *,
        regularised: bool = False,
    ) -> Tensor:  # [H, W, 3]
        """Colours as the image of a row shows them; as kernels.corrected."""
        return corrected(colors, self.rows, index, regularised=regularised, **self._lenses())

    @torch.no_grad()
    def as_taken(self, colors: Tensor, camera: Camera) -> Tensor:  # two of [H, W, 3]
        """Colours in the light of a camera's image, or in the mean light of all."""
        place = self.places.get(camera.image_name)
        index = torch.zeros(1, dtype=torch.int32, device=colors.device)
        if place is not None:
            return self(colors, index + place)
        mean = self.rows.mean(0, keepdim=True)
        if self.kind == "affine":
            return corrected(colors, mean, index)
        name = lens_name(camera)
        lenses = torch.zeros_like(self.lenses[:1])
        if name in self.lens_names:
            lenses = self.lenses[self.lens_names.index(name)][None]
        return corrected(colors, mean, index, lenses=lenses, lens_of=index)

    @torch.no_grad()
    def gains(self) -> dict[str, tuple[float, float, float]]:
        """By image name, what a mid grey in the middle of the image is multiplied by: R, G, B."""
        grey = torch.full((1, 1, 3), GREY, device=self.rows.device)
        index = torch.zeros(1, dtype=torch.int32, device=grey.device)
        shown = [self(grey, index + k).flatten() / GREY for k in range(len(self.rows))]
        values = torch.stack(shown).tolist()
        return {name: tuple(values[k]) for name, k in self.places.items()}

    def to_json(self) -> dict[str, Any]:
        """What light.json holds."""
        rows = self.rows.detach().cpu()
        if self.kind == "affine":
            images = rows.view(-1, 3, 4).tolist()
            return {"kind": self.kind, "images": dict(zip(self.places, images, strict=True))}
        lens_of = cast("Tensor", self.lens_of).tolist()
        return {
            "kind": self.kind,
            "images": dict(zip(self.places, rows.tolist(), strict=True)),
            "lenses": dict(zip(self.lens_names, self.lenses.detach().cpu().tolist(), strict=True)),
            "lens_of": {name: self.lens_names[lens_of[k]] for name, k in self.places.items()},
        }

    def _lenses(self) -> dict[str, Any]:
        if self.kind == "affine":
            return {}
        return {"lenses": self.lenses, "lens_of": self.lens_of}


def lens_name(camera: Camera) -> str:
    """What images through one lens have in common: their folder, and the size of their files."""
    folder = camera.image_name.rpartition("/")[0]
    width, height = camera.expected_file_size
    return f"{folder or '.'} {width}x{height}"


def light_of(model: Shares) -> Light | None:
    """The light that a model was trained with."""
    light = getattr(model.shared, NAME, None)
    return light if isinstance(light, Light) else None


def as_taken(model: Shares, colors: Tensor, camera: Camera) -> Tensor:  # two of [H, W, 3]
    """Colours of a model's rendering as they are compared with the camera's image."""
    light = light_of(model)
    return colors if light is None else light.as_taken(colors, camera)


def save_light(model: Shares, folder: Path) -> None:
    """Write light.json beside a model that has any."""
    light = light_of(model)
    if light is not None:
        write_json(folder / FILE, light.to_json())


def add_saved_light(model: Shares, folder: Path) -> None:
    """Give a model the light that lies beside its file, if any does.

    Raises:
        SplatrimError: light.json is broken.
    """
    light = read_light(folder)
    if light is not None:
        model.shared.add_module(NAME, light.to(model.device).requires_grad_(False))


def read_light(folder: Path) -> Light | None:
    """The light of a saved model; None where it has none.

    Raises:
        SplatrimError: light.json is broken.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    data = read_checked(path, _check)
    names = list(data["images"])
    if data["kind"] == "affine":
        light = Light("affine", names, names)
        light.rows.data = torch.tensor([*data["images"].values()]).reshape(len(names), 12)
        return light
    light = Light("ppisp", names, [data["lens_of"][name] for name in names])
    light.rows.data = torch.tensor([*data["images"].values()]).reshape(len(names), 9)
    light.lenses.data = torch.tensor([data["lenses"][name] for name in light.lens_names])
    return light


_AFFINE = fields({"images": mapped(listed(listed(number())))}, needs=("images",))
_PPISP = fields(
    {
        "images": mapped(listed(number())),
        "lenses": mapped(listed(number())),
        "lens_of": mapped(text),
    },
    needs=("images", "lenses", "lens_of"),
)


def _check(value: Any, where: str) -> None:
    """A check (gs.schema) of what `Light.to_json` gives."""
    fields({"kind": text}, needs=("kind",))(value, where)
    if value["kind"] not in ("affine", "ppisp"):
        raise Mismatch(f"kind: expected affine or ppisp, got {value['kind']!r:.40}")
    if value["kind"] == "affine":
        _AFFINE(value, where)
        sizes = {(len(row), *map(len, row)) for row in value["images"].values()}
        if not sizes <= {(3, 4, 4, 4)}:
            raise Mismatch("images: expected 3x4 numbers each")
        return
    _PPISP(value, where)
    if any(len(row) != 9 for row in value["images"].values()):
        raise Mismatch("images: expected 9 numbers each")
    if any(len(row) != LENS_NUMBERS for row in value["lenses"].values()):
        raise Mismatch(f"lenses: expected {LENS_NUMBERS} numbers each")
    if any(value["lens_of"].get(name) not in value["lenses"] for name in value["images"]):
        raise Mismatch("lens_of: expected a lens of each image")
