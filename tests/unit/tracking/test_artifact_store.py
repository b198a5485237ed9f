"""What errors of S3 mean, and whether they can be mended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.tracking import uploader
from runner.tracking.artifact_store import ROOT_VARIABLE, artifact_root, describe, explain
from runner.tracking.mlflow_server import MLFLOW_DEFAULTS
from runner.tracking.refused import is_permanent
from runner.utils.errors import UserError


def raised(cause: Exception, error: Exception) -> Exception:
    """`error`, as a library raises it while it handles `cause`."""
    try:
        try:
            raise cause
        except type(cause):
            raise error  # noqa: B904
    except type(error) as caught:
        return caught


def answered(code: str, status: int, message: str = "some words.") -> Exception:
    """The error with which boto3 says that S3 refused an upload."""
    boto = pytest.importorskip("boto3.exceptions")
    from botocore.exceptions import ClientError

    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return raised(
        ClientError(response, "PutObject"), boto.S3UploadFailedError("Failed to upload x to bucket/y: …")
    )


@pytest.mark.parametrize(
    ("code", "status", "permanent", "expected"),
    [
        ("NoSuchBucket", 404, False, "Amazon S3 has no such bucket (NoSuchBucket: some words); create it"),
        (
            "AccessDenied",
            403,
            False,
            "Amazon S3 refuses the credentials (AccessDenied: some words); correct AWS_",
        ),
        (
            "ExpiredToken",
            400,
            False,
            "Amazon S3 refuses the credentials (ExpiredToken: some words); correct AWS_",
        ),
        (
            "AuthorizationHeaderMalformed",
            400,
            False,
            "AuthorizationHeaderMalformed: some words; correct the address",
        ),
        ("SlowDown", 503, False, "SlowDown: some words; correct the address"),
        ("KeyTooLongError", 400, True, "KeyTooLongError: some words; correct the address"),
    ],
)
def test_answers_of_s3(
    code: str, status: int, permanent: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is wrong with the file itself is permanent: a bucket, a login and a region can be mended."""
    monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL", raising=False)
    error = answered(code, status)
    assert is_permanent(error) is permanent
    assert explain(error).startswith(expected)


def test_errors_from_elsewhere_are_not_explained() -> None:
    for error in (ValueError("no"), OSError("disk"), ModuleNotFoundError("no torch", name="torch")):
        assert describe(error) == explain(error) == ""


def test_a_missing_boto3_and_a_bad_endpoint_can_be_mended() -> None:
    assert is_permanent(ModuleNotFoundError("No module named 'boto3'", name="boto3")) is False
    endpoint = ValueError("Invalid endpoint: 127.0.0.1:1")
    assert is_permanent(endpoint) is False
    assert explain(endpoint) == "Invalid endpoint: 127.0.0.1:1; correct MLFLOW_S3_ENDPOINT_URL"


@pytest.mark.parametrize(
    "root", ["", " ", "s3://bucket", "s3://bucket/a/b/", "s3://arn:aws:s3:eu:1:accesspoint/x"]
)
def test_artifact_roots(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, root)
    assert artifact_root() == root.strip().rstrip("/")


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("/data", "is '/data', which is not an address"),
        ("file:///data", "not an address"),
        ("s3:///x", "not an address"),
        ("s3://bucket/x?y=1", "not an address"),
        (f"http://me:{'secret'}-word@host", "'http://me:…@host', which is not an address"),
        ("s3://me:secret-word@bucket/x", "holds a login"),
        ("s3://me:secret/word@bucket/x", "holds a login"),
    ],
)
def test_what_is_no_artifact_root(root: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, root)
    with pytest.raises(UserError, match=ROOT_VARIABLE) as refused:
        artifact_root()
    assert expected in str(refused.value)
    assert "secret" not in str(refused.value)


def test_large_files_have_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server answers once it has passed the file on; the user's own timeout stays."""
    name, default = uploader.REQUEST_TIMEOUT, MLFLOW_DEFAULTS[uploader.REQUEST_TIMEOUT]
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(500 * 10**6)
    monkeypatch.setenv(name, default)
    with uploader._time_to_pass_on(tmp_path, large):
        assert os.environ[name] == str(int(default) + 500)
    assert os.environ[name] == default
    monkeypatch.setenv(name, "7")
    with uploader._time_to_pass_on(large):
        assert os.environ[name] == "7"
