"""The servers of examples/compose, by their own commands on hosts of their own, and a SLURM array that uses them."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import ROOT, runner, user_environment
from pictures import small_experiment
from slurm_cluster import slurm_cluster

from benchmarks.support.hosts import Host
from benchmarks.support.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
COMPOSE = ROOT / "examples" / "compose"
CHOSEN = {"POSTGRES_PASSWORD": "hush-hush", "S3_KEY": "AKIARUNNERTEST", "S3_SECRET": "s3cret-aws-key"}
START_TIMEOUT = 200
"""Seconds that a server has for its first answer on a busy machine."""
JOB_TIMEOUT = 400
TRIALS = 6


def services() -> dict[str, dict[str, Any]]:
    """The services of the file, with the values of the variables in it."""

    def value(match: re.Match[str]) -> str:
        return CHOSEN.get(match["name"], match["default"] or "")

    text = (COMPOSE / "compose.yaml").read_text()
    filled = re.sub(r"\$\{(?P<name>\w+)(:-(?P<default>[^}]*)|:\?[^}]*)?\}", value, text)
    found: dict[str, dict[str, Any]] = yaml.safe_load(filled)["services"]
    return found


@pytest.fixture(scope="module")
def database_folder() -> Iterator[Path]:
    """A folder of the user postgres, who may not read those of pytest. It is removed when the hosts are gone."""
    if not shutil.which("setpriv") or "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip("PostgreSQL does not run as root; its user or setpriv is missing")
    with tempfile.TemporaryDirectory(prefix="runner-pg-", dir="/tmp") as folder:
        shutil.chown(folder, "postgres", "postgres")
        yield Path(folder)


@pytest.fixture(scope="module")
def cluster(database_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    pytest.importorskip("psycopg")
    if not (ROOT / ".venv" / ".ready").exists():
        pytest.skip("the jobs run launch.sh, whose environment is not ready (./launch.sh makes it)")
    with slurm_cluster(2, tmp_path_factory.mktemp("cluster"), list(services())) as running:
        yield running


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not ready():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def answers(url: str, name: str) -> bool:
    """Whether a server answers a request for its name."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, headers={"Host": name}), timeout=5).close()
    except OSError:
        return False
    return True


def start(host: Host, words: list[str], environment: Mapping[str, str]) -> tuple[subprocess.Popen[str], Path]:
    """Start a server on its host, with its log."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    log = host.folder / "log"
    process = host.start(
        words,
        {**user_environment(), "PATH": path, **environment},
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )
    return process, log


def start_database(host: Host, service: Mapping[str, Any], folder: Path) -> None:
    """What the image's entry point does: create the database, start the server, run the script of the volume."""
    import psycopg

    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("PostgreSQL is not installed")
    chosen = service["environment"]
    data, password_file = folder / "data", folder / "password"
    password_file.write_text(chosen["POSTGRES_PASSWORD"])
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    words = [
        *(str(programs[-1]), "-D", str(data), "-U", chosen["POSTGRES_USER"], "-A", "scram-sha-256"),
        *("--pwfile", str(password_file), "-E", "UTF8", "--locale", "C", "--no-sync"),
    ]
    done = host.run([*as_user, *words])
    assert done.returncode == 0, done.stderr
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all all scram-sha-256\n")
    options = ["-D", str(data), "-k", "", "-c", "listen_addresses=*"]
    process, log = start(
        host, [*as_user, str(programs[-1].with_name("postgres")), *options, *service["command"][1:]], {}
    )
    login = f"host={host.address} user={chosen['POSTGRES_USER']} password={chosen['POSTGRES_PASSWORD']}"

    def accepts() -> bool:
        try:
            psycopg.connect(f"{login} dbname=postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    wait_until(accepts, process, log)
    with psycopg.connect(f"{login} dbname=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {chosen['POSTGRES_DB']}".encode())
        connection.execute((COMPOSE / "studies.sql").read_bytes())


@pytest.fixture(scope="module")
def servers(cluster: SlurmCluster, database_folder: Path) -> Iterator[Mapping[str, Host]]:
    """The hosts of the running servers, by service."""
    found = services()
    hosts = {host.name: host for host in cluster.others}
    start_database(hosts["database"], found["database"], database_folder)
    data = hosts["s3"].folder / "data"
    data.mkdir()
    words = [word.replace("/data", str(data)) for word in found["s3"]["command"]]
    process, log = start(hosts["s3"], ["weed", *words], found["s3"]["environment"])
    wait_until(lambda: answers(f"http://{hosts['s3'].address}:8333/healthz", "s3:8333"), process, log)
    process, log = start(hosts["mlflow"], found["mlflow"]["command"], found["mlflow"]["environment"])
    wait_until(lambda: answers(f"http://{hosts['mlflow'].address}:5000/health", "mlflow:5000"), process, log)
    yield hosts
    for port in (8080, 8333, 8888, 9333):  # SeaweedFS leaves a socket of each, and of 10,000 more
        for path in Path("/tmp").glob(f"seaweedfs-*-*{port}.sock"):  # noqa: S108 (it uses no other folder)
            path.unlink(missing_ok=True)


def test_an_array_of_workers_does_a_study_with_these_servers(
    cluster: SlurmCluster, servers: Mapping[str, Host], images: Path, tmp_path: Path
) -> None:
    import psycopg

    (tmp_path / "space.yaml").write_text("optim.lr: {low: 0.001, high: 0.01}\n")
    environment = user_environment(
        MLFLOW_TRACKING_URI="http://mlflow:5000", PGPASSWORD=CHOSEN["POSTGRES_PASSWORD"]
    )
    words = [
        *("slurm", "search", *small_experiment(images, tmp_path / "cache", tmp_path / "mlruns")),
        *("--study", "shared", "--space", "space.yaml", "--trials", str(TRIALS), "--confirm", "0"),
        *("--storage", "postgresql://runner@database/studies", "--array", "2"),
    ]
    done = cluster.run(runner(*words), environment, tmp_path)
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[1]
    for element in range(2):
        cluster.wait_for(f"{job}_{element}", "COMPLETED", timeout=JOB_TIMEOUT)
    outputs = [
        (tmp_path / "mlruns" / "slurm" / f"shared-{job}_{element}.out").read_text() for element in range(2)
    ]
    login = f"host={servers['database'].address} user=runner password={CHOSEN['POSTGRES_PASSWORD']}"
    with psycopg.connect(f"{login} dbname=studies") as connection:
        states = [state for (state,) in connection.execute("SELECT state FROM trials")]
    assert len(states) >= TRIALS, outputs
    assert set(states) <= {"COMPLETE", "PRUNED"}, outputs
    with psycopg.connect(f"{login} dbname=mlflow") as connection:
        statuses = [status for (status,) in connection.execute("SELECT status FROM runs")]
    assert len(statuses) > TRIALS, outputs
    assert set(statuses) == {"FINISHED"}, outputs
    assert [key for key in keys_on_s3(servers["s3"]) if key.endswith("experiment.yaml")]


def keys_on_s3(host: Host) -> list[str]:
    """The names of the files in MLflow's bucket."""
    boto3 = pytest.importorskip("boto3")
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host.address}:8333",
        aws_access_key_id=CHOSEN["S3_KEY"],
        aws_secret_access_key=CHOSEN["S3_SECRET"],
        region_name="us-east-1",
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="mlflow")
    return [each["Key"] for page in pages for each in page.get("Contents", [])]
