"""Logs the use of CPU, memory and GPU during a run."""

from __future__ import annotations

import threading
from contextlib import suppress

from runner.tracking.tracker import Tracker

FIRST_SAMPLE = 0.5
SAMPLE_INTERVAL = 5.0
"""Seconds to the first sample, and between two."""


class SystemMetricsSampler(threading.Thread):
    """Samples the system with MLflow's own monitors and logs the values as `system/…`.

    Args:
        tracker: Logs them.
        step: Of the first sample; later than those of a run that is resumed.
    """

    def __init__(self, tracker: Tracker, step: int = 0) -> None:
        super().__init__(name="system metrics", daemon=True)
        self.tracker = tracker
        self.step = step
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        monitors = [CPUMonitor()]
        with suppress(Exception):  # no NVIDIA driver
            monitors.append(GPUMonitor())
        wait = FIRST_SAMPLE
        while not self._stop_asked.wait(wait):
            for monitor in monitors:
                monitor.collect_metrics()
                values = {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
                with suppress(OSError):  # a full disk: training itself reports it
                    self.tracker.log_metrics(values, self.step)
            self.step, wait = self.step + 1, SAMPLE_INTERVAL

    def stop(self) -> None:
        """End the thread, if it was started."""
        self._stop_asked.set()
        if self.is_alive():
            self.join()
