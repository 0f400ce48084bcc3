"""Idle threads sleep soon, unless the user has chosen otherwise, and torch hears of it in time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gs.idle_threads import SPIN_COUNT, USERS, let_idle_threads_sleep


def test_the_environment_says_how_long_threads_spin() -> None:
    environment = {"HOME": "/"}
    let_idle_threads_sleep(environment)
    assert environment == {"HOME": "/", "GOMP_SPINCOUNT": SPIN_COUNT}


@pytest.mark.parametrize("name", USERS)
def test_the_users_choice_stands(name: str) -> None:
    environment = {name: "anything"}
    let_idle_threads_sleep(environment)
    assert environment == {name: "anything"}


@pytest.mark.parametrize(
    "module", ["splatrim.train", "gs.render", "gs.metrics", "gs.report.__main__"]
)
def test_commands_say_it_before_torch_is_loaded(module: str, repo: Path) -> None:
    code = f"""
import os, sys
from importlib.abc import MetaPathFinder

class Seen(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))

sys.meta_path.insert(0, Seen())
import {module}
"""
    environment = {k: v for k, v in os.environ.items() if k not in USERS}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=repo, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [SPIN_COUNT]
