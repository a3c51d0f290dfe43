"""Numbers as text."""


def format_duration(seconds: float) -> str:
    """Format a duration in minutes, and in hours if it has any."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def format_bytes(size: int) -> str:
    """Format a number of bytes with a decimal unit."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
