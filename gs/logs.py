"""Shows the package's log on the terminal."""

import logging
import sys

from tqdm import tqdm


class _TerminalHandler(logging.Handler):
    """Writes lines above a progress bar, warnings marked as such."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        tqdm.write(mark + self.format(record), file=sys.stderr)


def show_log(*, quiet: bool) -> None:
    """Send the log to stderr: warnings only when quiet. Calling it again only sets the level."""
    logger = logging.getLogger("splatrim")
    logger.setLevel(logging.INFO)
    handlers = [h for h in logger.handlers if isinstance(h, _TerminalHandler)]
    handler = handlers[0] if handlers else _TerminalHandler()
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    if not handlers:
        logger.addHandler(handler)
