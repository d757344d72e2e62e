"""Entry point of ``netaug-fx``: errors become one clear message, a missing extra the command that installs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from netaug_fx.errors import NetAugError

# What the extra `train` installs, by import name.
TRAIN_MODULES = frozenset(
    {"PIL", "accelerate", "jinja2", "matplotlib", "pydantic", "rich", "safetensors", "sklearn", "torchmetrics", "typer"}
    | {"yaml"}
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a verification failed, 2 bad input, 130 interrupted.

    Args:
        arguments: words after the program's name; by default those of the process. ``--debug`` anywhere among them
            shows the traceback of an error.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        from netaug_fx.training.commands import app

        app(args=[word for word in words if word != "--debug"], prog_name="netaug-fx")
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if debug or missing not in TRAIN_MODULES:
            raise
        _fail(f"the command line needs {missing}, which the extra 'train' installs: pip install 'netaug_fx[train]'", 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except NetAugError as error:
        if debug:
            raise
        _fail(str(error), getattr(error, "exit_code", 2))


def _fail(message: str, code: int) -> None:
    print(f"netaug-fx: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
