"""The errors a user can cause; each message is one sentence that says what is wrong and what to do."""


class SlimrankError(Exception):
    """A run that cannot go on: a bad model, text, disk or number (exit status 1)."""

    status = 1


class UsageError(SlimrankError):
    """An option, recipe key or plan that cannot be meant (exit status 2)."""

    status = 2


class MissingLibrary(UsageError):
    """Something asked for needs an optional library that is not installed; the message says what to install."""
