"""The command `dcwh`, also as `python -m dcwh`, for launchers that start modules."""

import signal
import sys
from types import FrameType


def stop(number: int, frame: FrameType | None) -> None:
    """What Ctrl-C does. An import ends first, unless Ctrl-C comes again: torch, torn in its own,
    crashes."""
    again = number == signal.SIGINT and signal.getsignal(signal.SIGALRM) is stop
    if is_import(frame) and not again:
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 0.01)  # then look again
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise KeyboardInterrupt


def is_import(frame: FrameType | None) -> bool:
    "Whether a frame is within an import."
    while frame and not frame.f_code.co_filename.startswith('<frozen importlib'):
        frame = frame.f_back
    return frame is not None


def main() -> None:
    "Mind Ctrl-C, then import the commands and do what is asked."
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours and hasattr(signal, 'SIGALRM'):  # Windows has none
        signal.signal(signal.SIGINT, stop)
    try:
        from .cli import app

        app(prog_name='dcwh')
    except KeyboardInterrupt:  # between the imports and the command
        print('stopped', file=sys.stderr)
        sys.exit(130)
    except OSError as e:  # a version or a help that cannot be printed: a full disk
        print(e, file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:  # typer, between its start and the command, ends without a word
        if isinstance(getattr(end.__context__, '__cause__', None), KeyboardInterrupt):
            print('stopped', file=sys.stderr)
        raise


if __name__ == '__main__':
    main()
