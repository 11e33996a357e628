"""Entry point of the `q2d2` command: runs the app and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from q2d2cli.errors import Q2D2Error, report
from q2d2cli.streams import close_output, open_standard_streams


def main() -> None:
    """Run the command line; exits with 0 (done), 1 (data or run failed), 2 (usage) or 128 + signal."""
    open_standard_streams()
    code = close_output(run())
    if os.environ.get("WORLD_SIZE", "1") != "1" and "accelerate" in sys.modules:
        # It trained together with others: threads that torch's Gloo leaves behind can abort Python's own way out.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run() -> int:
    """Run the command line and return the exit code."""
    import typer

    from q2d2cli.cli import app

    # Typer brings its own copy of Click or uses an installed one: these are the classes it raises.
    usage_error: Any
    click_error: Any
    usage_error, click_error = typer.BadParameter.__mro__[1:3]

    def stop(number: int, _: object) -> None:
        # As an exception, so that temporary files are removed.
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, stop)
    try:
        code = app(prog_name="q2d2", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except Q2D2Error as error:
        return fail(str(error), error.exit_code)
    except usage_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return 2
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return fail(error.format_message() + hint, 2)
    except click_error as error:
        return fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing to say.
        return 1
    except MemoryError:
        return fail("out of memory", 1)


def fail(message: str, code: int) -> int:
    """Print one line for the user and return the exit code."""
    report(message)
    return code


if __name__ == "__main__":
    main()
