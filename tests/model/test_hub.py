"""A hub id is compressed as its folder is: every file that comes with the weights comes along."""

import os
import subprocess
import sys

import pytest
from hub import serving

RUN = """
from slimrank import compress
for model, out in (("owner/name", "from-hub"), ("hub/models/owner/name", "from-folder")):
    options = {"keep": 0.6, "calibration": "text.txt", "samples": 4, "window": 32}
    compress(model, "svd", out=out, **options)
    compress(model, "svd", **options).save(f"{out}-memory")
"""
OTHERS = {
    "LICENSE": "the licence",
    "NOTICE.txt": "the notice",
    "USE_POLICY.md": "the policy",
    "vocab.txt": "a\nb\n",
    "merges.txt": "a b\n",
    "tokenizer.model": "pieces",
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tool.jinja": "{{ tools }}",
    "own_settings.json": "{}",
}


@pytest.mark.parametrize("shards", ["20KB", pytest.param("5GB", marks=pytest.mark.slow)])
def test_a_hub_id_takes_its_files_along_as_a_folder_does(tiny_llama, tiny_tokenizer, make_text, tmp_path, shards):
    source = tmp_path / "hub" / "models" / "owner" / "name"
    tiny_llama().save_pretrained(source, max_shard_size=shards)
    tiny_tokenizer.save_pretrained(source)
    for name, text in OTHERS.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    (tmp_path / "text.txt").write_text(make_text(1500))
    with serving(tmp_path / "hub") as environment:
        done = subprocess.run(
            [sys.executable, "-c", RUN],
            cwd=tmp_path,
            env=os.environ | environment | {"HF_HUB_DISABLE_XET": "1"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    for road in ("", "-memory"):
        hub, folder = (tmp_path / f"from-{place}{road}" for place in ("hub", "folder"))
        names = {path.relative_to(hub).as_posix() for path in hub.rglob("*") if path.is_file()}
        assert names == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert names >= {*OTHERS, "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
        account = {"README.md", "slimrank/account.json", "slimrank/checksums.json"}  # seconds, and the model's name
        differ = {name for name in names if (hub / name).read_bytes() != (folder / name).read_bytes()}
        assert differ <= account
        assert {name: (hub / name).read_text() for name in OTHERS} == OTHERS
    assert "base_model: owner/name" in (tmp_path / "from-hub" / "README.md").read_text()
