"""Times and rates as people read them."""


def duration(seconds: float) -> tuple[str, str]:
    """Number and unit: 12.3 s, 4:05 min, 1:02 h."""
    if seconds < 59.95:
        return f"{seconds:.1f}", "s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}", "min"
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d}", "h"


def frame_rate(fps: float) -> tuple[str, str]:
    """Number and unit: 1,234 frames/s, 12.5 frames/s, or 10.2 s per view of a slow renderer."""
    if fps >= 100:
        return f"{fps:,.0f}", "frames/s"
    if fps >= 1 or fps <= 0:
        return f"{fps:.3g}", "frames/s"
    number, unit = duration(1 / fps)
    return number, f"{unit} per view"


def milliseconds(ms: float) -> str:
    """0.53 ms, 80 ms, 10.2 s."""
    return f"{ms:.3g} ms" if ms < 999.5 else " ".join(duration(ms / 1000))
