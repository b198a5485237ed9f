"""The process that runs the cases. It imports everything once and forks for each job: a crash ends only the job.

A job is a line of JSON on standard input. The answers are lines of JSON: {"ready"}, {"case": …} for each case,
{"ended": status}.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import traceback
from pathlib import Path

MAX_ADDRESS_SPACE = 4 * 2**30
"""Bytes of address space that cases may use. Beyond, they get a MemoryError."""


def main() -> None:
    """Serve jobs until standard input ends."""
    from fuzz.targets import TARGETS

    assert TARGETS, "imported once, before the jobs fork"
    out = os.dup(1)
    os.dup2(2, 1)  # what the runner prints must not mix with the answers
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _run(json.loads(line), out)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        _send(out, {"ended": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])})


def _run(job: dict[str, object], out: int) -> None:
    from fuzz.targets import TARGETS, shrink_vgg
    from fuzz.verdict import run_case

    name, folder, limit = str(job["format"]), Path(str(job["folder"])), float(str(job["limit"]))
    first, stop = int(str(job["first"])), int(str(job["stop"]))
    with (folder / "output").open("w") as output, (folder / "crash").open("w") as crash:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        faulthandler.enable(crash)
        shrink_vgg()
        target = TARGETS[name](folder)
        taken = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (taken + MAX_ADDRESS_SPACE, taken + MAX_ADDRESS_SPACE))
        _send(out, {"ready": True})
        for case in range(first, stop):
            faulthandler.dump_traceback_later(limit, exit=True, file=crash)
            verdict = run_case(target, name, case)
            faulthandler.cancel_dump_traceback_later()
            _send(out, {"case": case, "kind": verdict.kind, "text": verdict.text, "seconds": verdict.seconds})


def _send(out: int, line: dict[str, object]) -> None:
    rest = (json.dumps(line) + "\n").encode()
    while rest:
        rest = rest[os.write(out, rest) :]


if __name__ == "__main__":
    main()
