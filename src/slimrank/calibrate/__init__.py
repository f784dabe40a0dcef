"""Calibration: the statistics of the dense model on windows of text, as moments of every linear's input and output."""

from slimrank.calibrate.moments import InputMoments, Moments, OutputMoments
from slimrank.texts.texts import Text, read_text
from slimrank.texts.windows import Windows, check_window, context_length, sample_windows

__all__ = [
    "InputMoments",
    "Moments",
    "OutputMoments",
    "Text",
    "Windows",
    "check_window",
    "context_length",
    "read_text",
    "sample_windows",
]
