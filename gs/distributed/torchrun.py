"""What a process knows from torchrun's environment, and how ranks part."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..config import resume_command
from ..errors import SplatrimError
from ..run_record import saved_checkpoints
from .processes import RankLost
from .ranks import Ranks


def is_restart() -> bool:
    """Whether torchrun has started this process in place of one that has ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def may_restart() -> bool:
    """Whether torchrun would start it again if it failed."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


@contextlib.contextmanager
def closed(ranks: Ranks, args: Sequence[str], out: Path) -> Iterator[None]:
    """Where ranks work together; in the end they part, whatever has happened.

    Args:
        ranks: All do the same.
        args: Of train.py.
        out: Output folder, whose last checkpoint is named if a rank is lost.

    Raises:
        SplatrimError: As within; if a rank is lost, with the command that goes on.
    """
    try:
        yield
    except RankLost as error:
        saved = list(saved_checkpoints(out).values())
        if not saved:
            raise SplatrimError(
                f"{error}; no checkpoint was saved (--checkpoint_interval saves some)"
            ) from error
        command = resume_command(args, out, saved[-1], ranks.size)
        raise SplatrimError(f"{error}; go on with: {command}") from error
    except SplatrimError:
        ranks.tell_failure()
        raise
    finally:
        ranks.close()
