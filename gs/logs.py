"""Shows the package's log on the terminal, and keeps it in a file; neither can fail a run."""

import contextlib
import logging
import sys
from pathlib import Path

from tqdm import tqdm


class _TerminalHandler(logging.Handler):
    """Writes lines above a progress bar, warnings marked as such."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            tqdm.write(mark + self.format(record), file=sys.stderr)


class LogFile(logging.FileHandler):
    """Appends the package's log to a file; where that fails it says so once and stops."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:
        logger = logging.getLogger("splatrim")
        logger.removeHandler(self)
        logger.warning(f"{self.baseFilename} is not written any more: {sys.exc_info()[1]}")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what is left in its buffer has no place
            super().close()


def show_log(*, quiet: bool) -> None:
    """Send the log to stderr: warnings only when quiet. Calling it again only sets the level."""
    logger = logging.getLogger("splatrim")
    logger.setLevel(logging.INFO)
    handlers = [h for h in logger.handlers if isinstance(h, _TerminalHandler)]
    handler = handlers[0] if handlers else _TerminalHandler()
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    if not handlers:
        logger.addHandler(handler)
