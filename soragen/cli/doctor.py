"""soragen doctor"""

from __future__ import annotations

from soragen.cli import options, output


def doctor(as_json: options.Json = False, quiet: options.Quiet = False, debug: options.Debug = False) -> None:
    """Check this machine, and make a tiny video on it."""
    from soragen.pipeline import doctor as machine
    from soragen.pipeline.events import Stage

    done = []
    with output.Talk(quiet=quiet) as talk:
        for name in machine.CHECKS:
            talk.listen(Stage(name))
            done.append(machine.run_check(name))
    if as_json:
        output.json_object([{"name": c.name, "ok": c.failure is None, "found": c.found} for c in done])
    else:
        output.table([("ok" if c.failure is None else "FAILED", c.name, c.found) for c in done])
    failures = [check.failure for check in done if check.failure is not None]
    if failures:
        raise failures[0]
