"""Settings are read back from config.json and cfg_args, and checked."""

import json
from pathlib import Path

import pytest

from gs.errors import SplatrimError
from gs.run_settings import read_settings


def test_cfg_args_are_parsed_and_never_evaluated(tmp_path: Path) -> None:
    path = tmp_path / "cfg_args"
    path.write_text("Namespace(source_path='data/a b', resolution=-1, eval=True, images=None)")
    assert read_settings(tmp_path) == {
        "source_path": "data/a b",
        "resolution": -1,
        "eval": True,
        "images": None,
    }
    for text in ("Namespace(a=__import__('os').system('touch owned'))", "Namespace(", "3", ""):
        path.write_text(text)
        with pytest.raises(SplatrimError, match="cfg_args is not readable"):
            read_settings(tmp_path)
    assert not (tmp_path / "owned").exists() and not Path("owned").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"resolution": "abc"}, "resolution: expected a whole number of at least -1, got 'abc'"),
        ({"images": 5}, "images: expected text, got 5"),
        ({"eval": "yes"}, "eval: expected true or false"),
        ({"source_path": ["a"]}, "source_path: expected text, got list"),
        ({"optim": 3}, "optim: expected an object, got 3"),
        ({"optim": {"position_lr_max_steps": 0}}, "optim.position_lr_max_steps: expected"),
        ({"sh_degree": 7}, "sh_degree: expected a whole number from 0 to 3, got 7"),
        ({"resolution": True}, "resolution: expected a whole number"),
    ],
)
def test_wrong_types_are_named(tmp_path: Path, entry: dict[str, object], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"source_path": "x", **entry}))
    with pytest.raises(SplatrimError, match="config.json is broken: ") as caught:
        read_settings(tmp_path)
    assert message in str(caught.value)
    (tmp_path / "config.json").unlink()
    words = ", ".join(f"{name}={value!r}" for name, value in entry.items())
    (tmp_path / "cfg_args").write_text(f"Namespace({words})")
    with pytest.raises(SplatrimError, match="cfg_args is broken: "):
        read_settings(tmp_path)
