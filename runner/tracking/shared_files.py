"""Files that the runs of the embedded store share on disk."""

from __future__ import annotations

from pathlib import Path

from runner.tracking.mlflow_server import tracking_server


def frozen_folder(root: str) -> Path | None:
    """Where frozen weights lie once for all runs recorded under `root`; None if the records are not kept there."""
    server = tracking_server(root)
    return server.root / "frozen" if server.embedded and (server.root / "mlflow.db").exists() else None
