"""Is anything lost, whatever happens? Kills, outages and hostile files, and what it costs to be ready for them.

    ./launch.sh bench faults [--kills 30] [--outages 10] [--cases 1000] [--seed 0]

On a small experiment (scikit-learn's digits through VGG11 at random weights, 32 px) in a folder of its own:

`kills`, `kills_identical`: runs ended by SIGKILL at a moment drawn at random, half of them in the midst of a write
(snapshot, checkpoint, journal, feature store, scan of the images, statistics), the others at any time; and those that,
taken up again, have the metrics of an undisturbed run to the last bit, each point once, and end FINISHED.
`outages`, `outages_lost`: times that a real MLflow server was out of reach of one run (connections refused, answers
lost, errors, silence, the server itself started again), and metrics, params and artifacts that are missing or doubled.
`fuzz_cases`, `tracebacks`: hostile files that the runner's own readers were given, and those that did not end in
success rightly or one sentence. `checkpoint_overhead`: seconds spent on snapshots, of the seconds of a run at the
default setting. `resume_seconds`: from the start of the command to the first optimiser step, features kept, median.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import json
import multiprocessing
import os
import random
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TIMED = ("system/", "features/", "checkpoints/", "epoch_seconds", "images_per_second")
"""Metrics that tell of the machine, not of what was learned."""
RESUMES = 3
Points = dict[str, list[tuple[int, float]]]


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object."""
    from runner.utils.command_line import CommandLineParser
    from runner.utils.console import Terminal

    parser = CommandLineParser(prog="runner bench faults")
    for name, value in (("kills", 30), ("outages", 10), ("cases", 1000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    asked = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    multiprocessing.set_forkserver_preload(
        [
            "runner.training.seeds",
            "runner.train",
            "mlflow.pyfunc",
            "mlflow.store.db.utils",
            "pytorch_grad_cam",
        ]
    )
    terminal = Terminal()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        place = Path(name)
        figures: dict[str, Any] = {}
        for measure in (_costs, _kills, _outages, _fuzz):
            began = time.monotonic()
            figures |= measure(asked, place, terminal)
            terminal.line(f"{measure.__name__.strip('_')}: {time.monotonic() - began:.0f} s, {figures}")
    print(json.dumps({**figures, "seed": asked.seed}))
    return 0


def _words(place: Path, name: str, *more: str) -> list[str]:
    """The small experiment, with a cache of its own."""
    return [
        *(
            "--name",
            name,
            "--data.kind",
            "digits",
            "--cache",
            str(place / name),
            "--tracking.root",
            str(place / "mlruns"),
        ),
        *("--tracking.system_metrics", "false", "--model.weights", "null", "--model.arch", "vgg11"),
        *("--model.head", "pooled", "--model.pool", "1", "--model.width", "32", "--augment.resize", "36"),
        *("--augment.crop", "32", "--augment.views", "2", "--train.epochs", "6", "--train.batch_size", "32"),
        *("--train.precision", "no", "--tracking.gallery", "2", "--tracking.gallery_every", "3"),
        *("--data.workers", "0"),  # a fork server's children would start theirs anew
        *more,
    ]


# Kills


def _kills(asked: argparse.Namespace, place: Path, terminal: Any) -> dict[str, Any]:
    """Kill runs and take each up again."""
    draw = random.Random(asked.seed)  # noqa: S311 (moments, not secrets)
    often = ("--checkpoints.minutes", "0.005")
    _child(_words(place, "first", *often))  # which imports, and makes the database
    began = time.monotonic()
    ticks = _child(_words(place, "undisturbed", *often))
    lasted = time.monotonic() - began
    wanted = _points(place, "undisturbed")
    identical = 0
    with terminal.progress("kill and take up again", asked.kills, "runs") as advance:
        for number in range(asked.kills):
            killed, tried = 0, 0
            while killed >= 0:  # a moment may come after the end: another run, another moment
                tried += 1
                name = f"kill-{number:02}-{tried}"
                words = _words(place, name, *often, "--resume", "auto")
                at: tuple[str, float] = ("time", draw.uniform(0, lasted))
                if number % 2:
                    at = ("write", draw.randint(1, ticks))
                killed = _child(words, at)
            _child(words)
            found, states = _points(place, name), _states(place, name)
            fine = found == wanted and states[-1] == "FINISHED" and "RUNNING" not in states
            identical += fine
            if not fine:
                terminal.warn(f"{name}, killed at {at}: {states}, {_different(wanted, found)}")
            advance(1)
    return {"kills": asked.kills, "kills_identical": identical}


def _child(words: Sequence[str], at: tuple[str, float] | None = None) -> int:
    """Train in a process of its own, killed at a write or a time: how many writes there were; -1: it was killed."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    from benchmarks.faults import _train as child  # this module is run by its path, which no child can import

    process = context.Process(target=child, args=(list(words), at, theirs))
    process.start()
    theirs.close()
    if at is not None and at[0] == "time":
        process.join(at[1])
        process.kill()
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return -1
    if process.exitcode:
        raise RuntimeError(f"training ended with status {process.exitcode}")
    return int(ours.recv())


def _train(words: list[str], at: tuple[str, float] | None, answer: Any) -> None:
    """What the child does: `runner/train.py`, with its words to standard output left out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    from runner.train import main as train

    writes = _Writes(int(at[1]) if at is not None and at[0] == "write" else 0)
    status = train(words)
    answer.send(writes.count)
    sys.exit(status)


class _Writes:
    """Counts what reaches the disk, and kills the process in the midst of the write of that number."""

    def __init__(self, fatal: int) -> None:
        from runner.tracking import journal
        from runner.utils import tensors

        self.count = 0
        self.fatal = fatal
        self.lock = threading.Lock()
        sync, rename, save, append = os.fsync, Path.replace, tensors.save_file, journal.Journal.append

        def fsync(handle: int) -> None:
            self.tick(lambda: None)
            sync(handle)

        def replace(path: Path, target: Any) -> Path:
            self.tick(lambda: None)
            return rename(path, target)

        def save_file(values: Any, path: Any, metadata: Any) -> None:
            def half() -> None:
                save(values, path, metadata)
                os.truncate(path, os.path.getsize(path) // 2)

            self.tick(half)
            save(values, path, metadata)

        def append_event(self_: journal.Journal, event: dict[str, Any]) -> None:
            def half() -> None:
                with (self_.folder / "events.jsonl").open("ab") as file:
                    line = json.dumps(event).encode()
                    file.write(line[: len(line) // 2])

            self.tick(half)
            append(self_, event)

        os.fsync, Path.replace, tensors.save_file = fsync, replace, save_file  # type: ignore[assignment]
        journal.Journal.append = append_event  # type: ignore[method-assign]

    def tick(self, half: Callable[[], None]) -> None:
        with self.lock:
            self.count += 1
            if self.count == self.fatal:
                half()
                os.kill(os.getpid(), signal.SIGKILL)


def _query(place: Path, text: str, name: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(place / "mlruns" / "mlflow.db")) as database:
        return database.execute(text, (name,)).fetchall()


def _points(place: Path, name: str) -> Points:
    """Every point of an experiment's runs in MLflow but those that tell of the machine, as the database holds them."""
    text = """select m.key, m.step, m.value from metrics m join runs r on r.run_uuid = m.run_uuid
        join experiments e on e.experiment_id = r.experiment_id where e.name = ? order by m.key, m.step"""
    found: Points = {}
    for key, step, value in _query(place, text, name):
        if not key.startswith(TIMED):
            found.setdefault(key, []).append((step, value))
    return found


def _states(place: Path, name: str) -> list[str]:
    text = """select r.status from runs r join experiments e on e.experiment_id = r.experiment_id
        where e.name = ? order by r.start_time"""
    return [status for (status,) in _query(place, text, name)]


def _different(wanted: Points, found: Points) -> str:
    keys = sorted(key for key in {**wanted, **found} if wanted.get(key) != found.get(key))
    return f"{len(keys)} metrics differ: {keys[:5]}"


# Outages


class _Proxy(http.server.ThreadingHTTPServer):
    """Stands before a tracking server and does what `mode` says with each request."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = port
        self.mode = "well"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A broken connection is what is wanted."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _any(self) -> None:
        mode = self.server.mode
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.close_connection = True
        if mode == "silent":
            time.sleep(1)
        if mode in ("refused", "silent"):
            return
        if mode == "errors":
            self.send_error(500)
            return
        there = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=60)
        try:
            headers = {**self.headers, "Host": f"127.0.0.1:{self.server.behind}", "Connection": "close"}
            there.request(self.command, self.path, body, headers)
            answer = there.getresponse()
            content = answer.read()
        except OSError:  # the server itself is away
            return
        finally:
            there.close()
        if mode == "lost":
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815 (the base class's names)


@contextmanager
def _server(place: Path, port: int) -> Iterator[None]:
    """A real MLflow server over the folder's database."""
    store = f"sqlite:///{place / 'mlruns' / 'mlflow.db'}"
    words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    words += ["--artifacts-destination", str(place / "served"), "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (place / "server.log").open("a") as said:
        process = subprocess.Popen(
            words, env={**os.environ, **quiet}, stdout=said, stderr=said, start_new_session=True
        )
    try:
        _until(lambda: _answers(port), 120)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _answers(port: int) -> bool:
    there = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        there.request("GET", "/health")
        return there.getresponse().status == 200
    except OSError:
        return False
    finally:
        there.close()


def _until(ready: Callable[[], bool], patience: float) -> None:
    end = time.monotonic() + patience
    while not ready():
        if time.monotonic() > end:
            raise RuntimeError(f"nothing came in {patience:g} s")
        time.sleep(0.02)


def _outages(asked: argparse.Namespace, place: Path, terminal: Any) -> dict[str, Any]:
    """One run through all outages, beside one without."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    long = ("--train.epochs", "200", "--train.batch_size", "8", "--schedule.kind", "constant")
    # Both by the same command: a process started otherwise has another number of threads, and other last digits.
    command = [sys.executable, "-m", "runner.cli.main", "train"]
    subprocess.run([*command, *_words(place, "calm", *long)], stdout=subprocess.DEVNULL, check=True)
    proxy, done = _Proxy(port), 0
    modes = ("refused", "lost", "errors", "silent")
    os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{proxy.server_address[1]}"
    try:
        with _server(place, port):
            run = subprocess.Popen(
                [*command, *_words(place, "stormy", *long)],
                stdout=subprocess.DEVNULL,
            )
            _until(lambda: bool(_points(place, "stormy")), 120)
            for number in range(asked.outages - 1):
                if run.poll() is not None:
                    break
                proxy.mode, done = modes[number % len(modes)], done + 1
                time.sleep(1.5)
                proxy.mode = "well"
                time.sleep(0.7)
        if run.poll() is None:
            done += 1  # the server itself is stopped …
        with _server(place, port):  # … and started again
            run.wait()
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
        proxy.shutdown()
    wanted, found = _points(place, "calm"), _points(place, "stormy")
    lost = sum(
        len(set(wanted.get(key, [])) ^ set(found.get(key, [])))
        + len(found.get(key, []))
        - len(set(found.get(key, [])))
        for key in {**wanted, **found}
    )
    lost += abs(_params(place, "calm") - _params(place, "stormy"))
    lost += len(_files(place / "mlruns/artifacts/calm") ^ _files(place / "served"))
    if _states(place, "stormy") != ["FINISHED"] or done < asked.outages or lost:
        terminal.warn(
            f"the run through {done} outages is {_states(place, 'stormy')}; {_different(wanted, found)}"
        )
    return {"outages": done, "outages_lost": lost}


def _params(place: Path, name: str) -> int:
    text = """select count(*) from params p join runs r on r.run_uuid = p.run_uuid
        join experiments e on e.experiment_id = r.experiment_id where e.name = ?"""
    return int(_query(place, text, name)[0][0])


def _files(folder: Path) -> set[str]:
    """Names of artifacts that are the same in every run: not of pictures, which hold the time."""
    return {path.name for path in folder.rglob("*") if path.is_file() and "images" not in path.parts}


# Costs


def _costs(asked: argparse.Namespace, place: Path, terminal: Any) -> dict[str, Any]:
    """What snapshots take at the default setting, and how soon an interrupted run goes on."""
    # A head of the size that caltech101-pooled has: 1.2 million numbers and their moments, 19 MB a snapshot.
    large = ("--augment.resize", "100", "--augment.crop", "96", "--model.pool", "3", "--model.width", "256")
    _child(_words(place, "costs", *large, "--augment.views", "clean", "--train.epochs", "150"))
    text = """select m.value, (r.end_time - r.start_time) / 1000.0 from metrics m join runs r on r.run_uuid = m.run_uuid
        join experiments e on e.experiment_id = r.experiment_id where m.key = 'checkpoints/seconds' and e.name = ?"""
    spent, lasted = _query(place, text, "costs")[0]
    terminal.line(f"snapshots took {spent:.3f} s of a run of {lasted:.1f} s")
    words = _words(
        place, "resume", "--checkpoints.minutes", "0", "--train.epochs", "2000", "--resume", "auto"
    )
    taken = [
        each
        for number in range(RESUMES + 1)
        if (each := _first_step(words, place, fresh=not number)) is not None
    ]
    return {
        "checkpoint_overhead": round(spent / lasted, 5),
        "resume_seconds": round(statistics.median(taken), 2),
    }


def _first_step(words: Sequence[str], place: Path, fresh: bool) -> float | None:
    """Seconds from the start of the command to the first snapshot, which a step has led to; None for a new run."""
    before = _snapshots(place)
    began = time.monotonic()
    run = subprocess.Popen(
        [sys.executable, "-m", "runner.cli.main", "train", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _until(lambda: bool(_snapshots(place) - before), 120)
    taken = time.monotonic() - began
    run.send_signal(signal.SIGTERM)
    run.wait()
    return None if fresh else taken


def _snapshots(place: Path) -> set[Path]:
    return set((place / "mlruns" / "journals").glob("*/state/[0-9]*.safetensors"))


# Hostile files


def _fuzz(asked: argparse.Namespace, place: Path, terminal: Any) -> dict[str, Any]:
    """Every format's cases."""
    from fuzz import FORMATS, fuzz

    cases = faults = 0
    with terminal.progress("hostile files", len(FORMATS), "formats") as advance:
        for name in FORMATS:
            report = fuzz(name, asked.cases, place)
            bad = [*report.tracebacks, *report.wrong, *report.slow]
            cases += report.cases
            faults += len(bad)
            for each in bad[:3]:
                terminal.warn(f"{name}: {each}")
            advance(1)
    return {"fuzz_cases": cases, "tracebacks": faults, "formats": len(FORMATS)}
