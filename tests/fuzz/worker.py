"""The process that cases run in. It imports everything once, and forks for each job: what dies there dies alone.

A job comes in as a line of JSON; lines of JSON go out: {"ready"}, {"case": …} for each, {"ended": status}.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import traceback
from pathlib import Path

ROOM = 4 * 2**30
"""Bytes of address space that cases may take; what wants more gets an error instead of the machine's memory."""


def main() -> None:
    """Serve jobs until standard input ends."""
    from fuzz.targets import TARGETS

    assert TARGETS, "what is imported here need not be in each job"
    out = os.dup(1)
    os.dup2(2, 1)  # nothing that the runner prints gets between the lines
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
        _say(out, {"ended": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])})


def _run(job: dict[str, object], out: int) -> None:
    from fuzz.judge import judge
    from fuzz.targets import TARGETS, hasten

    name, folder, limit = str(job["format"]), Path(str(job["folder"])), float(str(job["limit"]))
    first, stop = int(str(job["first"])), int(str(job["stop"]))
    with (folder / "said").open("w") as said, (folder / "died").open("w") as died:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        faulthandler.enable(died)
        hasten()
        target = TARGETS[name](folder)
        taken = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
        _say(out, {"ready": True})
        for case in range(first, stop):
            faulthandler.dump_traceback_later(limit, exit=True, file=died)
            verdict = judge(target, name, case)
            faulthandler.cancel_dump_traceback_later()
            _say(out, {"case": case, "kind": verdict.kind, "text": verdict.text, "seconds": verdict.seconds})


def _say(out: int, line: dict[str, object]) -> None:
    rest = (json.dumps(line) + "\n").encode()
    while rest:
        rest = rest[os.write(out, rest) :]


if __name__ == "__main__":
    main()
