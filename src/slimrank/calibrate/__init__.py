"""What calibration reads (texts, windows) and what it keeps of it."""

from slimrank.calibrate.texts import Text, read_text
from slimrank.calibrate.windows import Windows, check_window, context_length, sample_windows

__all__ = ["Text", "Windows", "check_window", "context_length", "read_text", "sample_windows"]
