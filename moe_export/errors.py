"""Errors with the exit code each one ends the command line with."""

from __future__ import annotations


class MoeExportError(Exception):
    """Base of every error a user can meet; its text says what to do about it."""

    exit_code = 1


class ParityError(MoeExportError):
    """The exported model does not compute what eager PyTorch computes."""

    exit_code = 1


class UsageError(MoeExportError, ValueError):
    """An argument or an input is wrong."""

    exit_code = 2


class UnsupportedModelError(MoeExportError):
    """The model has something that cannot be exported faithfully."""

    exit_code = 3


class EnvironmentLacksError(MoeExportError):
    """A package, library or device that the request needs is missing."""

    exit_code = 4


class ContractError(MoeExportError, ValueError):
    """A tensor or attribute breaks the op contract; the text starts with the constraint's label."""

    exit_code = 3


class BundleError(MoeExportError):
    """A bundle is incomplete, altered or malformed."""

    exit_code = 2
