from slimrank.progress import Track, no_track


def test_no_track_passes_items_through():
    track: Track = no_track
    items = [1, 2, 3]
    assert list(track(iter(items), "Counting", 3)) == items
