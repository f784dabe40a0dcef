import json
import re
from collections import defaultdict
from statistics import mean


def test_readmes_picture_shows_the_rows_and_says_what_is_left_out(script, run, tmp_path):
    picture = script("picture")
    drawn = (picture.FILE.parents[2] / "docs" / "nats-lost.svg").read_text(encoding="utf-8")
    rows = [row for row in json.loads(picture.FILE.read_text())["rows"] if row["keep"] == 0.8 and "texts" in row]
    by_bar = defaultdict(list)
    for row in rows:
        for name, text in row["texts"].items() if not row["settings"] else ():
            by_bar[row["recipe"], name].append(text["nats_lost"])
    numbers = list(map(mean, by_bar.values()))
    near = sorted(round(number, 2) for number in numbers if number < 5)
    shown = sorted(float(number) for number in re.findall(r"nats lost for each token: ([\d.]+)", drawn))
    assert len(near) >= 6 and sorted(set(shown)) == sorted(set(near))
    assert "svd loses 14.7 and 13.7 nats and is left out." in drawn
    run("picture", "--out", str(tmp_path / "again.svg"))
    assert "svd loses 14.7" in (tmp_path / "again.svg").read_text(encoding="utf-8")
