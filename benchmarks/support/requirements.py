"""What a measurement needs of the machine."""

from __future__ import annotations


class MissingRequirementError(Exception):
    """This machine lacks a program or a right that is needed; the message is the reason."""
