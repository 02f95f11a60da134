"""Errors that a user can cause below the serving layer.

FlashletError
├── ModelNotFoundError      no such name, folder or file
├── DownloadError           the source cannot be reached, or refuses
├── ChecksumError           bytes differ from what the registry promises
├── ModelFormatError        a file is broken: what was expected and what was found
├── UnsupportedModelError   an architecture, tensor type or option that is not built
├── ChatTemplateError       a chat template that fails, refuses the messages or exceeds its limits
├── OutOfMemoryError        weights or KV pool do not fit
└── MissingExtraError       an optional dependency is needed and not installed
"""

from __future__ import annotations


class FlashletError(Exception):
    """Base of every error whose message is meant for the user."""


class ModelNotFoundError(FlashletError):
    """No model under this name or path; the message names the known ones."""


class DownloadError(FlashletError):
    """The source of a model cannot be reached or refuses to serve it."""


class ChecksumError(FlashletError):
    """A file's bytes differ from its recorded checksum or size."""


class ModelFormatError(FlashletError):
    """A model file is damaged or inconsistent; the message gives expected and found."""


class UnsupportedModelError(FlashletError):
    """The model is well-formed but uses something that flashlet does not implement."""


class ChatTemplateError(FlashletError):
    """A chat template failed, rejected the messages, or went over its time or size limit."""


class OutOfMemoryError(FlashletError):
    """The weights or the KV pool do not fit in the memory that is available."""


class MissingExtraError(FlashletError):
    """An optional dependency is not installed; the message gives the pip command."""
