"""What commands and runs print."""

import sys


def say(text: str) -> None:
    """Print a line at once, so that it survives in a log of a killed job."""
    print(text, file=sys.stdout, flush=True)


def clock(seconds: float) -> str:
    """A time as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
