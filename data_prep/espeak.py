"""eSpeak NG through ctypes, from the wheel `espeakng-loader`: library and voices with pip alone.

Run it in a process of its own: the state of the synthesiser cannot be reset, so that only a fresh
process with a set seed gives the same waveform twice. eSpeak NG is GPL-3; the library never imports
this file.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from speechssl.errors import DataError

_SYNCHRONOUS = 2
_OPTIONS = 0x1 | 0x2 | 0x8000  # phoneme events, phoneme names in IPA, do not exit on errors
_RATE, _PITCH, _RANGE = 1, 3, 4
_UTF8 = 1
_END, _WORD, _PHONEME = 0, 1, 7


class _Id(ctypes.Union):
    _fields_ = (
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass
class Spoken:
    """One synthesised sentence."""

    wave: np.ndarray  # (S,) float32 in [-1, 1]
    words: list[tuple[int, float]] = field(default_factory=list)  # (first character, start in s)
    phones: list[tuple[str, float]] = field(default_factory=list)  # (IPA, start in s)


class Voice:
    """One voice of one process: `name` such as "en-us+f3", rate in words per minute."""

    def __init__(self, name: str, *, seed: int, rate: int, pitch: int, pitch_range: int) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise DataError(
                "the demo corpus needs espeakng-loader; pip install espeakng-loader"
            ) from error
        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        data = Path(espeakng_loader.get_data_path()).parent
        self.rate_hz = int(
            self._lib.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), _OPTIONS)
        )
        if self.rate_hz <= 0:
            raise DataError(f"eSpeak NG did not start with the data in {data}; reinstall the wheel")
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        if self._lib.espeak_SetVoiceByName(name.encode()) != 0:
            raise DataError(f"eSpeak NG has no voice '{name}'")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        self._pieces: list[np.ndarray] = []
        self._spoken = Spoken(np.zeros(0, np.float32))
        self._callback = _Callback(self._collect)  # must outlive the calls
        self._lib.espeak_SetSynthCallback(self._callback)

    def say(self, text: str) -> Spoken:
        """Synthesise `text`, with the start of every word and phone."""
        self._pieces, self._spoken = [], Spoken(np.zeros(0, np.float32))
        content = text.encode("utf-8")
        code = self._lib.espeak_Synth(
            ctypes.c_char_p(content), ctypes.c_size_t(len(content) + 1), 0, 1, 0, _UTF8, None, None
        )
        if code != 0 or not self._pieces:
            raise DataError(f"eSpeak NG could not say {text!r} (code {code})")
        self._spoken.wave = np.concatenate(self._pieces).astype(np.float32) / 32_768
        return self._spoken

    def _collect(self, wave: object, num_samples: int, events: object) -> int:
        if wave and num_samples > 0:
            self._pieces.append(np.ctypeslib.as_array(wave, (num_samples,)).copy())  # pyright: ignore
        index = 0
        while events[index].type != _END:  # pyright: ignore
            event = events[index]  # pyright: ignore
            start_sec = event.audio_position / 1000
            if event.type == _WORD:
                self._spoken.words.append((event.text_position - 1, start_sec))
            elif event.type == _PHONEME and event.id.string:
                phone = event.id.string.decode("utf-8", "ignore")
                self._spoken.phones.append((phone, start_sec))
            index += 1
        return 0
