"""The parser of the commands' arguments."""

from __future__ import annotations

import argparse
from typing import NoReturn

from runner.utils.errors import UserError


class CommandLineParser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` for wrong arguments."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help.")
