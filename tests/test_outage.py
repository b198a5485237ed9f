"""A tracking server that goes away: a real one behind a proxy that refuses, hangs, fails, and loses answers."""

from __future__ import annotations

import json
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from helpers import QUIET, Make, listening
from test_tracking import Heard, dead, points

from runner.cli import sync
from runner.tracking import uploader
from runner.tracking.mlflow_server import Server, server
from runner.tracking.tracker import MlflowTracker, tracked
from runner.training import run
from runner.utils.errors import guarded

SLOW = 0.3
"""Seconds that a slow server takes for each answer."""
AT_MOST = 1.0
"""Seconds that training may wait for a call of its records."""
FAULTS = ("refuse", "hang", "500", "lose the answer", "slow")


class Proxy:
    """Passes connections on to a server, as `mood` says: "pass" or one of `FAULTS`.

    Every connection takes one request: it is closed after the answer, so that a mood counts from the next one on.
    """

    def __init__(self) -> None:
        self.mood = "pass"
        self.behind = 0
        """The port of the server."""
        self.met: list[str] = []
        """The moods that requests met."""
        self._over = threading.Event()
        self._open: socket.socket | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._listen()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set(self, mood: str) -> None:
        """Behave so from the next connection on."""
        self.mood = mood
        if mood == "refuse":
            if self._open is not None:
                self._open.close()
            self._open = None
        elif self._open is None:
            self._listen()

    def close(self) -> None:
        self._over.set()
        self.set("refuse")

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(50)
        self._open = listener

    def _serve(self) -> None:
        while not self._over.is_set():
            listener = self._open
            try:
                if listener is None or not select.select([listener], [], [], 0.05)[0]:
                    time.sleep(0.01)
                    continue
                connection, _ = listener.accept()
            except (OSError, ValueError):  # closed meanwhile
                continue
            threading.Thread(target=self._treat, args=(connection, self.mood), daemon=True).start()

    def _treat(self, connection: socket.socket, mood: str) -> None:
        with connection, suppress(OSError):
            request = _request(connection)
            if not request:
                return
            self.met.append(mood)
            if mood == "hang":
                while self.mood == "hang" and not self._over.is_set():
                    time.sleep(0.05)
                return
            if mood == "500":
                connection.sendall(
                    b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops"
                )
                return
            if mood == "slow":
                time.sleep(SLOW)
            answer = self._ask(request)
            if mood != "lose the answer":
                connection.sendall(answer)

    def _ask(self, request: bytes) -> bytes:
        """The whole answer of the server behind."""
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        answer = b""
        with socket.create_connection(("127.0.0.1", self.behind), timeout=60) as server:
            server.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
            while chunk := server.recv(1 << 16):
                answer += chunk
        return answer


def _request(connection: socket.socket) -> bytes:
    """A whole request, with its body."""
    content = b""
    connection.settimeout(60)
    while b"\r\n\r\n" not in content:
        if not (chunk := connection.recv(1 << 16)):
            return b""
        content += chunk
    head, _, body = content.partition(b"\r\n\r\n")
    said = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if said.get(b"transfer-encoding", b"").lower() == b"chunked":
        while not body.endswith(b"0\r\n\r\n"):
            body += connection.recv(1 << 16)
    while len(body) < int(said.get(b"content-length", 0)):
        body += connection.recv(1 << 16)
    return head + b"\r\n\r\n" + body


class Behind:
    """A real server on a database in a folder; it can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._stack = ExitStack()

    def start(self) -> None:
        words = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "{port}"),
            *("--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}", "--workers", "1"),
            *("--artifacts-destination", str(self.folder / "kept"), "--serve-artifacts"),
        ]
        address = self._stack.enter_context(listening(words, "/health", self.folder / "server.txt"))
        self.port = int(address.rpartition(":")[2])

    def stop(self) -> None:
        self._stack.close()
        self._stack = ExitStack()


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    one = Behind(tmp_path_factory.mktemp("server"))
    one.start()
    yield one
    one.stop()


@pytest.fixture
def proxy(behind: Behind) -> Iterator[Proxy]:
    one = Proxy()
    one.behind = behind.port
    yield one
    one.close()


@pytest.fixture
def place(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The store behind the proxy. Patience is short, so that what hangs does not take minutes."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    return server(str(tmp_path / "mlruns"))


@pytest.fixture
def timely(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each call that records something took."""
    took: list[float] = []
    record = MlflowTracker._record

    def timed(self: MlflowTracker, event: dict[str, Any]) -> None:
        began = time.monotonic()
        record(self, event)
        took.append(time.monotonic() - began)

    monkeypatch.setattr(MlflowTracker, "_record", timed)
    return took


def epoch(tracker: MlflowTracker, step: int) -> None:
    """What a run says of an epoch."""
    tracker.metrics({"train/loss": 1 / step, "lr": 0.5}, step)
    tracker.metrics({"val/loss": 2 / step}, step)
    tracker.params({f"note.{step}": step})
    tracker.tags({f"runner.note.{step}": str(step)})
    tracker.text(f"notes/{step}.txt", f"epoch {step}")
    path = tracker.stage(f"figures/{step}.png")
    path.write_bytes(bytes(range(256)) * 40)
    tracker.artifact(path, "figures")


def check(client: Any, run_id: str, steps: int, database: Path, status: str = "FINISHED") -> None:
    """Everything that `epoch` said so many times is there, in order, once each."""
    import sqlite3

    there = client.get_run(run_id)
    assert there.info.status == status
    assert there.info.end_time >= there.info.start_time
    for name, top in (("train/loss", 1), ("val/loss", 2)):
        expected = [(step, pytest.approx(top / step)) for step in range(1, steps + 1)]
        assert points(client, run_id, name) == expected
        times = [
            each.timestamp for each in sorted(client.get_metric_history(run_id, name), key=lambda m: m.step)
        ]
        assert times == sorted(times)
    assert there.data.params == {f"note.{step}": str(step) for step in range(1, steps + 1)}
    assert "runner.refused" not in there.data.tags
    for step in range(1, steps + 1):
        assert there.data.tags[f"runner.note.{step}"] == str(step)
    pictures = {each.path: each.file_size for each in client.list_artifacts(run_id, "figures")}
    assert pictures == {f"figures/{step}.png": 256 * 40 for step in range(1, steps + 1)}
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        doubled = connection.execute(
            "SELECT key, step, COUNT(*) FROM metrics WHERE run_uuid = ? GROUP BY key, step HAVING COUNT(*) > 1",
            (run_id,),
        ).fetchall()
    assert doubled == []


def within(seconds: float, holds: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.05)


def mark_dead(folder: Path) -> None:
    """Make the journals say that they are of a process that has ended."""
    pid, started = dead()
    for path in folder.glob("*/owner.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "pid": pid, "started": started}))


@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if f != "hang"] + [pytest.param("hang", marks=pytest.mark.slow)]
)
def test_an_outage_in_the_middle(
    place: Server, proxy: Proxy, behind: Behind, timely: list[float], fault: str
) -> None:
    client = place.connect()
    terminal = Heard()
    with tracked(place, client, "outage", fault, terminal) as tracker:
        epoch(tracker, 1)
        within(30, lambda: not tracker.journal.pending())
        proxy.set(fault)
        for step in (2, 3, 4):
            epoch(tracker, step)
            time.sleep(0.2)
        if fault == "refuse":
            within(30, lambda: tracker.shipper.fault is not None)
        else:
            within(30, lambda: fault in proxy.met)
        proxy.set("pass")
        epoch(tracker, 5)
    assert all("records wait on disk" in note for note in terminal.notes)
    if fault == "refuse":
        assert "the tracking server does not answer" in terminal.notes[0]
        assert "the tracking server is back" in terminal.lines[-1]
    assert max(timely) < AT_MOST
    check(client, tracker.run_id, 5, behind.folder / "server.db")
    assert list((place.root / "journals").iterdir()) == []


def test_a_run_that_ends_in_an_outage_says_so_and_sync_delivers_later(
    place: Server,
    proxy: Proxy,
    behind: Behind,
    timely: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(uploader, "LAST_PATIENCE", 2.0)
    client = place.connect()
    terminal = Heard()
    with tracked(place, client, "outage", "away at the end", terminal) as tracker:
        epoch(tracker, 1)
        within(30, lambda: not tracker.journal.pending())
        proxy.set("refuse")
        epoch(tracker, 2)
    *_, note = terminal.notes
    assert "could not all be delivered yet" in note
    assert "./launch.sh sync" in note
    assert max(timely) < AT_MOST
    mark_dead(place.root / "journals")
    words = ["--tracking.root", str(place.root)]
    capsys.readouterr()
    assert guarded(lambda: sync.main(words)) == 2
    errors = capsys.readouterr().err
    assert errors.count("runner: ") == 1
    assert "does not answer" in errors
    assert "Traceback" not in errors
    proxy.set("lose the answer")
    threading.Timer(3, proxy.set, ["pass"]).start()
    within(30, lambda: guarded(lambda: sync.main(words)) == 0)
    check(client, tracker.run_id, 2, behind.folder / "server.db")
    assert [path for path in (place.root / "journals").iterdir() if path.is_dir()] == []


@pytest.mark.slow
def test_one_outage_after_another_with_a_server_that_starts_anew(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    proxy: Proxy,
    place: Server,
    timely: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Behind(tmp_path_factory.mktemp("own"))
    own.start()
    try:
        proxy.behind = own.port
        client = place.connect()
        step = 0
        with tracked(place, client, "outage", "all of them", QUIET) as tracker:
            for fault in (*FAULTS, "stop", *FAULTS):
                if fault == "stop":
                    own.stop()
                else:
                    proxy.set(fault)
                for _ in range(3):
                    epoch(tracker, step := step + 1)
                    time.sleep(0.3)
                if fault == "stop":
                    own.start()
                    proxy.behind = own.port
                proxy.set("pass")
                epoch(tracker, step := step + 1)
                time.sleep(0.5)
        assert max(timely) < AT_MOST
        check(client, tracker.run_id, step, own.folder / "server.db")
        assert list((place.root / "journals").iterdir()) == []
    finally:
        own.stop()


@pytest.mark.slow
def test_a_training_through_outages(
    make: Make,
    accelerator: Accelerator,
    place: Server,
    proxy: Proxy,
    behind: Behind,
    timely: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = make("--tracking.model", "true", "--tracking.gallery", "1", "--train.epochs", "6")
    client = place.connect()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")  # for the checkpoint's 36 MB, through the proxy
    over = threading.Event()

    def weather() -> None:
        for fault in ("refuse", "lose the answer", "500", "slow") * 20:
            if over.is_set():
                break
            proxy.set(fault)
            over.wait(0.7)
            proxy.set("pass")
            over.wait(0.7)
        proxy.set("pass")

    changing = threading.Thread(target=weather)
    with tracked(place, client, experiment.name, "through outages", QUIET) as tracker:
        changing.start()
        result = run.train(experiment, accelerator, tracker, QUIET)
        time.sleep(3)
        over.set()
        changing.join()
    assert max(timely) < AT_MOST
    there = client.get_run(tracker.run_id)
    assert there.info.status == "FINISHED"
    for name, value in (("val/loss", lambda e: e.val.loss), ("train/loss", lambda e: e.train_loss)):
        assert points(client, tracker.run_id, name) == [(each.number, value(each)) for each in result.history]
    (model,) = client.search_logged_models([there.info.experiment_id], f"source_run_id = '{tracker.run_id}'")
    assert model.status == "READY"
    assert len(client.search_model_versions(f"run_id = '{tracker.run_id}'")) == 1
    assert list((place.root / "journals").glob("*/")) == []
    fetched = client.download_artifacts(tracker.run_id, "checkpoints", str(tmp_path))
    assert sorted(path.name for path in Path(fetched).iterdir()) == [
        *("best.safetensors", "frozen.safetensors", "last.safetensors")
    ]
