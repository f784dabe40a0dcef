import io

from rich.console import Console

from slimrank.cli import console
from slimrank.runtime.track import Track, no_track


def test_no_track_passes_items_through():
    track: Track = no_track
    items = [1, 2, 3]
    assert list(track(iter(items), "Counting", 3)) == items


def test_a_description_that_changes_is_asked_before_each_item(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=screen, force_terminal=True, width=100))
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    seen: list[int] = []
    for item in console.track([3, 1, 2], lambda: f"best {min(seen, default='none')}", 3):
        seen.append(item)
    assert seen == [3, 1, 2] and "best none" in screen.getvalue() and "best 1" in screen.getvalue()
    assert list(console.track([5], "counting", 1)) == [5] and "counting" in screen.getvalue()
