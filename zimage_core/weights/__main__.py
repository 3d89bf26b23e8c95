"""Make a transformer's file smaller, or say what a file is.

python -m zimage_core.weights convert IN OUT.safetensors --to fp8
python -m zimage_core.weights describe FILE
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path

from .convert import convert
from .errors import WeightsError
from .readers import describe
from .targets import TARGETS

log = logging.getLogger("zimage_core.weights")


ENDS = ("SIGTERM", "SIGHUP")  # a closed terminal, too, ends it as Ctrl-C does: nothing is left


def show(done: int, total: int) -> None:
    """One line of a terminal, written anew."""
    sys.stderr.write(f"\r{100 * done // total:3d} % " + ("\n" if done == total else ""))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m zimage_core.weights", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    smaller = commands.add_parser("convert", help="write a smaller file and its error")
    smaller.add_argument("source", metavar="IN", type=Path, help="a file, or a folder of shards")
    smaller.add_argument("out", metavar="OUT", type=Path, help="the new file; none is written over")
    smaller.add_argument("--to", choices=TARGETS, required=True)
    told = commands.add_parser("describe", help="what a file or folder holds")
    told.add_argument("source", metavar="FILE", type=Path)
    given = parser.parse_args(arguments)

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("gguf").setLevel(logging.WARNING)
    for name in ENDS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, signal.default_int_handler)
    try:
        if given.command == "convert":
            progress = show if sys.stderr.isatty() else None
            convert(given.source, given.out, given.to, progress)
        else:
            for kind, facts in describe(given.source).items():
                log.info("%s", "\n  ".join([kind, *(f"{name}: {fact}" for name, fact in facts.items())]))
    except WeightsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:  # a name that is too long, a disk that fails
        sys.stderr.write(f"{error}. Check the names and the disk, or choose others.\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped: nothing was written\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
