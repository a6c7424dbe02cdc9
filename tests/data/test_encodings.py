import csv
import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyformer.data.encodings import find_fault
from anyformer.data.materialize import read_rows
from anyformer.errors import UserError

here = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
WESTERN = "abcdefghijklmnopqrstuvwxyz ,.!?äöüßéèñç"
plain = st.text("abcdefghij ", min_size=3, max_size=20)
accented = st.builds("{}café {}".format, plain, plain)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def rendered(name: str, lines: list[str]) -> str:
    """The lines as texts of a file of this kind."""
    if "jsonl" in name:
        return "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines)
    return "\n".join(["text", *lines, ""]) if "csv" in name else "".join(f"{line}\tO\n" for line in lines)


@here
@given(
    before=st.lists(plain, max_size=5),
    bad=accented,
    after=st.lists(accented, max_size=3),
    encoding=st.sampled_from(["latin-1", "utf-16", "utf-16-le", "utf-16-be"]),
    name=st.sampled_from(["a.jsonl", "a.csv", "a b.csv", "a.conll", "a.csv.gz"]),
)
def test_the_first_line_is_named_and_the_command_mends_the_file(
    tmp_path: Path, before: list[str], bad: str, after: list[str], encoding: str, name: str
):
    lines = [each.strip().replace(" ", "_") or "x" for each in (*before, bad, *after)]
    path = write(tmp_path / name, rendered(name, lines).encode(encoding))
    with pytest.raises(UserError) as error:
        list(read_rows([str(path)]))
    place = 1 if encoding.startswith("utf") else len(before) + 1 + ("csv" in name)
    said = str(error.value)
    assert f"{path}, line {place}, is not UTF-8 text: byte " in said
    assert ("UTF-16" if encoding.startswith("utf") else "Latin-1") in said
    if shutil.which("iconv"):
        subprocess.run(["sh", "-c", said.partition("converts: ")[2]], check=True)
        mended = tmp_path / f"{name.partition('.')[0]}-utf8{Path(name.removesuffix('.gz')).suffix}"
        found = [row.values.get("text") or row.values["tokens"] for row in read_rows([str(mended)])]
        assert found == ([lines] if "conll" in name else lines)


@pytest.mark.parametrize(
    ("content", "line", "encoding"),
    [
        (b"fine\n\x93quoted\x94\n", 2, "WINDOWS-1252"),
        ("строка\n".encode("koi8-r"), 1, None),
        ("日本語\n".encode("shift-jis"), 1, None),
        (b"a\n\0\x01\xff\xfe\x00\n", 2, None),
        ("ä".encode()[:1], 1, None),
        ("x\n".encode("utf-16-le") * 3, 1, "UTF-16LE"),
    ],
)
def test_the_encoding_of_other_files(tmp_path: Path, content: bytes, line: int, encoding: str | None):
    with write(tmp_path / "a.txt", content).open("rb") as file:
        fault = find_fault(file)
    assert fault is not None
    assert (fault.line, fault.encoding) == (line, encoding)


@here
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), part=st.integers(1, 5))
def test_a_file_that_is_utf8_has_no_fault(tmp_path: Path, text: str, part: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyformer.data.encodings._PART", part)
        with write(tmp_path / "a.txt", text.encode()).open("rb") as file:
            assert find_fault(file) is None


def test_a_table_with_semicolons_is_read(tmp_path: Path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows([["text", "label"], ["good, really", "1,5"], ["a;b", "2"]])
    found = [row.values for row in read_rows([str(path)])]
    assert found == [{"text": "good, really", "label": "1,5"}, {"text": "a;b", "label": "2"}]
