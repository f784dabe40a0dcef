"""The errors a user can cause; each message is one sentence that says what is wrong and what to do."""


class SlimrankError(Exception):
    """A run that cannot go on: a bad model, text, disk or number (exit status 1)."""

    status = 1


class UsageError(SlimrankError):
    """An invalid option, recipe key or plan (exit status 2)."""

    status = 2


class MissingLibrary(UsageError):
    """Something asked for needs an optional library that is not installed; the message says what to install."""


def uncapitalized(sentence: str) -> str:
    """A library's sentence as a part of ours; names inside keep their case."""
    return sentence[:1].lower() + sentence[1:]
