import bz2
import gzip
import hashlib
import json
import sys
from pathlib import Path

import pytest

from slimrank import demo
from slimrank.calibrate import read_text
from slimrank.errors import SlimrankError, UsageError

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def jsonl(path: Path, *rows: object) -> str:
    return write(path, "\n".join(json.dumps(row) for row in rows) + "\n")


@pytest.mark.parametrize("name", ["a.txt", "wiki.test.tokens", "README"])
def test_any_other_file_is_plain_text(tmp_path, name):
    spec = write(tmp_path / name, "one\r\n\ntwö\n")
    text = read_text(spec)
    assert text.text == "one\n\ntwö\n"
    assert text.source == spec
    assert text.sha256 == hashlib.sha256("one\n\ntwö\n".encode()).hexdigest()


def test_jsonl_rows_are_joined_with_a_blank_line(tmp_path):
    spec = jsonl(
        tmp_path / "a.jsonl", {"text": "one\u2028", "body": "eins"}, {"text": "", "body": "zwei"}, {"text": "3"}
    )
    assert read_text(spec).text == "one\u2028\n\n\n\n3"


def test_jsonl_with_a_field_raw_line_separators_and_blank_lines(tmp_path):
    spec = write(tmp_path / "a.JSONL", '\ufeff{"body": "eins\u2028"}\n\n{"body": "zwei"}')
    assert read_text(f"{spec}:body").text == "eins\u2028\n\nzwei"


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    # a folder name that looks like a hive partition must not add a column
    (tmp_path / "split=x").mkdir()
    path = tmp_path / "split=x" / "a.parquet"
    parquet.write_table(arrow.table({"text": ["one", "two"], "body": ["eins", None], "messages": [CHAT, CHAT]}), path)
    assert read_text(str(path)).text == "one\n\ntwo"
    with pytest.raises(UsageError, match=r"no field 'split': choose one of text, body, messages as .*a.parquet:COLUMN"):
        read_text(f"{path}:split")
    with pytest.raises(SlimrankError, match=r"a.parquet:body row 2 holds NoneType where text should be"):
        read_text(f"{path}:body")
    with pytest.raises(SlimrankError, match=r"bad.parquet cannot be read as parquet"):
        read_text(write(tmp_path / "bad.parquet", "no table"))
    with pytest.raises(UsageError, match=r"none.parquet does not exist"):
        read_text(str(tmp_path / "none.parquet"))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SlimrankError, match=r"needs pyarrow: pip install slimrank\[data\]"):
        read_text(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("spec", "tried", "answers"),
    [
        ("hub:imdb:train", [("imdb", None, "train")], "imdb"),
        ("hub:Salesforce/wikitext/raw-v1:test", [("Salesforce/wikitext", "raw-v1", "test")], "Salesforce/wikitext"),
        ("hub:allenai/c4:train[:3]", [("allenai/c4", None, "train[:3]")], "allenai/c4"),
        ("hub:wikitext/raw-v1:test", [("wikitext/raw-v1", None, "test"), ("wikitext", "raw-v1", "test")], "wikitext"),
    ],
)
def test_hub(monkeypatch, spec, tried, answers):
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(name, config, split):
        calls.append((name, config, split))
        if name != answers:
            raise datasets.exceptions.DatasetNotFoundError(f"no {name}")
        return datasets.Dataset.from_dict({"text": ["one", "", "two"], "body": ["1", "2", "3"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_text(spec).text == "one\n\n\n\ntwo"
    assert calls == tried
    assert read_text(f"{spec}:body").text == "1\n\n2\n\n3"
    with pytest.raises(UsageError, match=r"no field 'title': choose one of text, body as hub:.*:FIELD"):
        read_text(f"{spec}:title")


def test_hub_errors(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(name, config, split):
        raise (ValueError("Config name is missing.\nPick one") if split == "train" else ConnectionError(f"no {name}"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(SlimrankError, match=r"^hub:a/b:train cannot be loaded: Config name is missing. Pick one$"):
        read_text("hub:a/b:train")
    with pytest.raises(SlimrankError, match=r"^hub:a/b:test cannot be loaded: no a/b$"):
        read_text("hub:a/b:test")
    for spec in ("hub:a/b", "hub:", "hub::train", "hub:a/b/c/d:train"):
        with pytest.raises(UsageError, match="is not a hub dataset"):
            read_text(spec)


def test_hub_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SlimrankError, match=r"needs the datasets library: pip install slimrank\[data\]"):
        read_text("hub:imdb:train")


def test_demo_reads_the_part_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TEXT", tmp_path)
    write(tmp_path / "calibration.txt", "to learn from")
    write(tmp_path / "evaluation.txt", "to be judged by")
    assert read_text("demo").text == "to learn from"
    evaluation = read_text("demo", part="evaluation")
    assert (evaluation.text, evaluation.source) == ("to be judged by", "demo (evaluation)")


def test_chat_messages_go_through_the_template(tmp_path, tiny_tokenizer):
    spec = jsonl(tmp_path / "a.jsonl", {"messages": CHAT}, {"messages": CHAT[:1]})
    tiny_tokenizer.chat_template = TEMPLATE
    text = read_text(spec, chat=True, tokenizer=tiny_tokenizer)
    assert text.text == "[user] Hi\n[assistant] Hello\n\n\n[user] Hi\n"
    renamed = jsonl(tmp_path / "b.jsonl", {"talk": CHAT})
    assert read_text(f"{renamed}:talk", chat=True, tokenizer=tiny_tokenizer).text == "[user] Hi\n[assistant] Hello\n"


def test_the_text_of_content_in_parts_is_taken_and_other_parts_are_refused(tmp_path, tiny_tokenizer):
    tiny_tokenizer.chat_template = TEMPLATE.replace("m.content", "m.content or 'calls'")
    parts = [{"type": "text", "text": "Hi "}, "there"]
    calls = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}
    spec = jsonl(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": parts}, calls]})
    assert read_text(spec, chat=True, tokenizer=tiny_tokenizer).text == "[user] Hi there\n[assistant] calls\n"
    for content, said in (
        ([*parts, {"type": "image", "url": "a.png"}], "a part of type 'image', which is no text: remove the row"),
        ([{"type": "text", "text": 3}], "a part of type 'text', which is no text"),
        ([3], "a part of type 'int'"),
        (None, "whose content is NoneType, not text: remove the row"),
        ({"text": "Hi"}, "whose content is dict, not text"),
    ):
        spec = jsonl(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": content}]})
        with pytest.raises(SlimrankError, match=rf"a.jsonl line 1 has a message .*{said}"):
            read_text(spec, chat=True, tokenizer=tiny_tokenizer)


def test_json_arrays_and_csv_are_read_as_rows(tmp_path):
    rows = [{"text": "one", "body": "eins"}, {"text": "two", "body": "zwei"}]
    spec = write(tmp_path / "a.json", json.dumps(rows, indent=1))
    assert read_text(spec).text == "one\n\ntwo" and read_text(f"{spec}:body").text == "eins\n\nzwei"
    assert read_text(write(tmp_path / "b.json", '["one", "two"]')).text == "one\n\ntwo"
    assert read_text(jsonl(tmp_path / "lines.json", *rows)).text == "one\n\ntwo"
    spec = write(tmp_path / "a.csv", 'text,body\none,"ei,n\ns"\ntwo,zwei\n')
    assert read_text(spec).text == "one\n\ntwo" and read_text(f"{spec}:body").text == "ei,n\ns\n\nzwei"
    assert read_text(write(tmp_path / "a.tsv", "id\ttext\n1\tone, two\n")).text == "one, two"


@pytest.mark.parametrize(
    ("start", "kind"),
    [(gzip.compress(b"text", mtime=0), "gzip"), (b"PK\x03\x04rest", "zip"), (bz2.compress(b"text"), "bzip2")],
)
def test_a_compressed_file_is_called_so(tmp_path, start, kind):
    for name in ("a.txt", "a.json.gz", "a.jsonl"):
        with pytest.raises(SlimrankError, match=rf"{name} is compressed with {kind}: decompress it first"):
            read_text(write(tmp_path / name, start))


def test_chat_errors(tmp_path, tiny_tokenizer):
    spec = jsonl(tmp_path / "a.jsonl", {"messages": CHAT, "text": "plain"})
    for tokenizer in (None, tiny_tokenizer):
        with pytest.raises(UsageError, match="has no chat template"):
            read_text(spec, chat=True, tokenizer=tokenizer)
    with pytest.raises(SlimrankError, match=r"a.jsonl:messages line 1 holds list .* or use the chat template"):
        read_text(f"{spec}:messages")
    tiny_tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(SlimrankError, match=r"line 1 does not fit the tokenizer's chat template: roles must alternate"):
        read_text(spec, chat=True, tokenizer=tiny_tokenizer)
    with pytest.raises(SlimrankError, match=r"a.jsonl:text line 1 is not a list of {role, content} messages"):
        read_text(f"{spec}:text", chat=True, tokenizer=tiny_tokenizer)
    with pytest.raises(UsageError, match=r"a.txt holds no chat messages"):
        read_text("a.txt", chat=True, tokenizer=tiny_tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", r"a.txt is not UTF-8 text \(byte 3\)"),
        ("a.txt", b" \n", "a.txt holds no text"),
        ("a.jsonl", b"", "a.jsonl holds no text"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": ', r"a.jsonl line 3 is not JSON \(.*\): fix or remove the line"),
        ("a.jsonl", b"[1]", "a.jsonl line 1 is not a JSON object"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl line 1 holds int where text should be"),
        (
            "a.jsonl",
            b'{"body": "x", "id": 1}',
            r"line 1 has no field 'text': choose one of body, id as .*a.jsonl:FIELD",
        ),
        ("a.json", b'[{"text": "x"}, ', r"a.json is not JSON \(.*\): fix it, or give a row a line as .jsonl"),
        ("a.json", b"[[1]]", "a.json row 1 is neither a JSON object nor a string"),
        ("a.json", b'{"data": [{"text": "x"}]}', "a.json line 1 has no field 'text': choose one of data as"),
        ("a.csv", b"a,b\n1,2\n", r"a.csv has no field 'text': choose one of a, b as .*a.csv:COLUMN"),
        ("a.csv", b'text\n"x"y\n', r"a.csv after line 1 is not CSV \(.*\): fix or remove it"),
        ("a.csv", b"id,text\n1\n", "a.csv row 1 holds NoneType where text should be"),
        ("a.jsonl", b'{"text": "x\\ud800"}', r"a.jsonl holds half a surrogate pair \(character 1\)"),
    ],
)
def test_bad_content_is_one_sentence(tmp_path, name, content, message):
    with pytest.raises(SlimrankError, match=message) as raised:
        read_text(write(tmp_path / name, content))
    assert "\n" not in str(raised.value)


def test_missing_file_and_folder(tmp_path):
    for name in ("none.txt", "none.jsonl"):
        with pytest.raises(UsageError, match=f"{name} does not exist"):
            read_text(str(tmp_path / name))
    with pytest.raises(SlimrankError, match="cannot be read: Is a directory"):
        read_text(str(tmp_path))
