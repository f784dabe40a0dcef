import hashlib

import pytest
import torch

from slimrank.calibrate import Text, sample_windows
from slimrank.errors import SlimrankError, UsageError
from slimrank.texts.mix import apportioned, interleaved, mixed, split_share

A, B, C = (Text(letter * 9000 + letter.upper() * 1000, f"{letter}.txt", letter * 3) for letter in "abc")


@pytest.fixture
def letters(tiny_tokenizer):
    """letters(windows) -> which letter each window is made of."""
    return lambda windows: "".join(tiny_tokenizer.decode(row)[0] for row in windows)


@pytest.fixture
def draw(tiny_tokenizer):
    def draw(texts, shares=(), **options):
        return sample_windows(tiny_tokenizer, texts, window=4, shares=shares, **{"samples": 20, "seed": 3} | options)

    return draw


def test_what_follows_the_last_star_is_the_share():
    assert split_share("a.jsonl:text*0.3") == ("a.jsonl:text", 0.3)
    assert split_share("a.txt*.5") == ("a.txt", 0.5) and split_share("a.txt*1e-1") == ("a.txt", 0.1)
    for spec in ("a.txt", "a*.txt", "a.txt*half", "hub:a/b:train[:3]"):
        assert split_share(spec) == (spec, None)
    assert mixed(["odd*0.3*1"]) == [("odd*0.3", 1.0)]


def test_texts_without_a_share_have_the_rest_in_equal_ones():
    assert mixed(["a.txt"]) == [("a.txt", 1.0)]
    assert mixed(["a", "b"]) == [("a", 0.5), ("b", 0.5)]
    assert mixed(["a*0.5", "b", "c"]) == [("a", 0.5), ("b", 0.25), ("c", 0.25)]
    assert mixed(["a*0.3", "b*0.7"]) == [("a", 0.3), ("b", 0.7)]


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        (["a*0.3", "b*0.3"], r"^The shares of --calibration add up to 0.6: make them 1, or leave one of them out\.$"),
        (["a*0.3"], r"add up to 0\.3: make them 1"),
        (["a*0.9", "b*0.3"], r"add up to 1\.2: make them 1"),
        (["a*0.7", "b*0.3", "c"], r"^The shares of --calibration add up to 1 and leave nothing for the texts without"),
        (["a*1.5", "b"], r"^--calibration a\*1.5: the share must be above 0 and at most 1\.$"),
        (["a*0", "b"], r"a\*0: the share must be above 0"),
        (["a*-0.5", "b"], r"a\*-0\.5: the share must be above 0"),
        (["a*0.5", "a*0.5"], r"^--calibration a is given twice: give it once, with the sum of its shares\.$"),
    ],
)
def test_shares_that_cannot_be_meant(specs, said):
    with pytest.raises(UsageError, match=said):
        mixed(specs)


def test_whole_numbers_in_these_shares():
    assert apportioned(10, [0.3, 0.7]) == [3, 7] and apportioned(100, [0.29, 0.71]) == [29, 71]
    assert apportioned(10, [1 / 3] * 3) == [4, 3, 3] and apportioned(0, [0.5, 0.5]) == [0, 0]
    assert apportioned(3, [0.05, 0.95]) == [0, 3]


def test_every_beginning_is_mixed_like_the_whole():
    rows = [torch.full((count, 2), value) for value, count in enumerate((30, 70))]
    orders = set()
    for seed in range(20):
        order = interleaved(rows, seed)[:, 0]
        assert torch.equal(order, interleaved(rows, seed)[:, 0]) and int(order.sum()) == 70
        assert all(abs(int(order[:m].sum()) - 0.7 * m) < 1 for m in range(101))
        orders.add(tuple(order.tolist()))
    assert len(orders) == 20
    one = torch.arange(50).view(25, 2)
    assert torch.equal(interleaved([one], 3), one)


def test_windows_of_all_kinds_come_in_the_shares(draw, letters):
    windows = draw([A, B], (0.25, 0.75))
    drawn, held_out = letters(windows.calibration), letters(windows.held_out)
    assert drawn.count("a") == 5 and drawn.count("b") == 15 and windows.calibration.shape == (20, 4)
    assert 1 <= drawn[:8].count("a") <= 3  # 2 in the shares
    assert [letters(own) for own in windows.by_text()] == ["a" * 5, "b" * 15]
    assert held_out.count("A") == 2 and held_out.count("B") == 6
    more = letters(windows.more(40, 4))
    assert more.count("a") == 10 and more.count("b") == 30
    assert torch.equal(windows.more(40, 4), windows.more(40, 4))
    equal = letters(draw([A, B, C], samples=30).calibration)
    assert {letter: equal.count(letter) for letter in "abc"} == {"a": 10, "b": 10, "c": 10}


def test_texts_of_one_length_are_not_read_at_the_same_places(draw, make_text):
    one, other = (Text(make_text(3000), name, name) for name in ("one", "other"))
    windows = draw([one, other], samples=40).calibration
    assert len(windows.unique(dim=0)) == 40


def test_one_text_is_read_as_it_always_was(tiny_tokenizer, make_text):
    text = Text(make_text(6000), "story.txt", "5ha")
    windows = sample_windows(tiny_tokenizer, text, samples=40, window=32, seed=3)
    again = sample_windows(tiny_tokenizer, [text], samples=40, window=32, seed=3, shares=(1.0,))
    for found in (windows, again):
        drawn = (found.calibration, found.held_out, found.more(10, 4))
        assert [hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:16] for ids in drawn] == [
            "79da592efd13f9c8",
            "f14799f5395d793c",
            "54d4b382017e8c9a",
        ]
    assert again.by_text()[0] is again.calibration
    assert windows.record == again.record and "texts" not in windows.record


def test_the_record_names_all_texts(draw):
    record = draw([A, B], (0.25, 0.75)).record
    assert record["source"] == "a.txt (0.25), b.txt (0.75)"
    assert record["texts"] == [
        {"source": "a.txt", "sha256": "aaa", "share": 0.25},
        {"source": "b.txt", "sha256": "bbb", "share": 0.75},
    ]
    assert record["sha256"] == hashlib.sha256(b"aaabbb").hexdigest() and record["held_out"] == 8


def test_held_out_windows_keep_the_shares_where_a_tail_is_short(draw, letters):
    short = Text("c" * 81 + "C" * 9, "c.txt", "c")  # two windows of four
    held_out = letters(draw([A, short]).held_out)
    assert held_out.count("A") == 3 and held_out.count("C") == 2
    with pytest.raises(SlimrankError, match=r"only 0 of the 1 windows of 4 tokens fit into the last tenth of d\.txt"):
        draw([A, Text("d" * 20, "d.txt", "d")], samples=4)


def test_too_little_for_a_share(draw):
    with pytest.raises(UsageError, match=r"^--samples 4 leaves no window for the first nine tenths of a\.txt: give"):
        draw([A, B], (0.05, 0.95), samples=4)
    with pytest.raises(
        SlimrankError, match=r"fit into the first nine tenths of e\.txt, so use another share, a smaller"
    ):
        draw([A, Text("e" * 100, "e.txt", "e")], samples=100)
