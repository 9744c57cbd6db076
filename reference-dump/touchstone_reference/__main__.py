"""`python -m touchstone_reference`: train and export a model, make the golden cases, capture any module."""

import argparse
import importlib
import sys

from .errors import BadInput

# Each is a module with `add_arguments(parser)` and `run(args) -> exit code`, imported only when it is asked for.
COMMANDS = {
    "train": "train the reference GPT on a text file and export a model folder",
    "golden": "make the golden cases",
    "capture": "record every submodule of any PyTorch module as golden cases",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand. Exit codes: 0 done, 2 bad usage or input, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="touchstone_reference", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, purpose in COMMANDS.items():
        subparser = commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        if words and words[0] == name:
            importlib.import_module(f".{name}", __package__).add_arguments(subparser)
    args = parser.parse_args(words)
    try:
        return importlib.import_module(f".{args.command}", __package__).run(args)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
