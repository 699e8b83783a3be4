"""The errors users see. Each message says what, where, got, expected, and how to fix it."""

from __future__ import annotations


class SpeechSSLError(Exception):
    """Base of all errors that are the input's fault; `exit_code` is what the CLI ends with."""

    exit_code = 1


class ConfigError(SpeechSSLError):
    """A wrong setting: unknown key, wrong type, options that contradict each other."""

    exit_code = 2


class DataError(SpeechSSLError):
    """Data that cannot be used at all."""

    exit_code = 3


class ManifestError(DataError):
    """A manifest line that cannot be read or contradicts itself."""


class AudioError(DataError):
    """An audio file that cannot be used. `kind` is one word that reports count by."""

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind


class CheckpointError(SpeechSSLError):
    """A checkpoint or model folder that is missing, damaged or of another model."""

    exit_code = 1
