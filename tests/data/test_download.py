"""Downloads from a server that breaks off, lies about the length and serves other bytes."""

from __future__ import annotations

import errno
import hashlib
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
from web_server import Site

from utils_.datasets.fetch import download
from utils_.datasets.fetch.download import ATTEMPTS, Source, fetch
from utils_.errors import UserError

DATA = np.random.default_rng(0).bytes(3_000_000)
MD5 = "md5:" + hashlib.md5(DATA).hexdigest()


@pytest.fixture
def site():
    with Site(files={"/a.zip": DATA}) as site:
        yield site


def get(site: Site, folder: Path, *, checksum: str | None = MD5, size: int | None = None) -> Path:
    return fetch(Source(site.url + "/a.zip", "a.zip", checksum, size), folder, pause=0, timeout=5)


def refusal(site: Site, folder: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        get(site, folder, **options)
    assert "\n" not in str(caught.value) and not (folder / "a.zip").exists()
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("faults", [[], ["500", "503"], ["break"] * 12, ["stall", "break", "429"]])
def test_whole_file_in_spite_of_faults(site, tmp_path, faults):
    site.faults = list(faults)
    assert get(site, tmp_path / "new" / "folder").read_bytes() == DATA
    assert names(tmp_path / "new/folder") == ["a.zip"]
    assert len(site.asked) == len(faults) + 1


def test_broken_off_download_is_resumed_by_range(site, tmp_path):
    site.faults = ["break"]
    get(site, tmp_path)
    assert site.asked == [("/a.zip", None), ("/a.zip", "bytes=1500000-")]


def test_later_call_goes_on(site, tmp_path):
    site.faults = ["break"] + ["500"] * ATTEMPTS
    message = refusal(site, tmp_path)
    assert "broke off at 1,500,000 bytes" in message and "go on from there" in message
    assert names(tmp_path) == ["a.zip.part", "a.zip.part.json"]
    site.asked.clear()
    assert get(site, tmp_path).read_bytes() == DATA
    assert site.asked == [("/a.zip", "bytes=1500000-")]
    get(site, tmp_path)
    assert len(site.asked) == 1  # whole and checked: not asked again


@pytest.mark.parametrize("change", ["tag", "no range", "no note"])
def test_part_that_cannot_be_resumed_is_begun_anew(site, tmp_path, change):
    site.faults = ["break"] + ["500"] * ATTEMPTS
    refusal(site, tmp_path)
    if change == "tag":
        site.tag = '"two"'
        (tmp_path / "a.zip.part").write_bytes(b"x" * 1000)
    elif change == "no range":
        site.resumes = False
    else:
        (tmp_path / "a.zip.part.json").unlink()
    assert get(site, tmp_path).read_bytes() == DATA


def test_old_part_of_another_file_is_noticed_by_the_checksum(site, tmp_path):
    site.faults = ["break"] + ["500"] * ATTEMPTS
    refusal(site, tmp_path)
    (tmp_path / "a.zip.part").write_bytes(b"x" * 1000)  # the tag still fits
    assert get(site, tmp_path).read_bytes() == DATA
    assert site.asked[-1] == ("/a.zip", None)


def test_part_that_is_already_whole(site, tmp_path):
    site.faults = ["break"] + ["500"] * ATTEMPTS
    refusal(site, tmp_path)
    (tmp_path / "a.zip.part").write_bytes(DATA)
    site.asked.clear()
    assert get(site, tmp_path).read_bytes() == DATA
    assert site.asked == [("/a.zip", "bytes=3000000-")]


def test_part_that_is_too_long(site, tmp_path):
    site.faults = ["break"] + ["500"] * ATTEMPTS
    refusal(site, tmp_path)
    (tmp_path / "a.zip.part").write_bytes(DATA + b"more")
    assert get(site, tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_version_only_a_checksum_allows_to_resume(site, tmp_path, tag):
    site.tag = tag
    site.faults = ["break"]
    assert get(site, tmp_path).read_bytes() == DATA
    assert site.asked[-1] == ("/a.zip", "bytes=1500000-")
    (tmp_path / "a.zip").unlink()
    site.faults = ["break"]
    assert get(site, tmp_path, checksum=None).read_bytes() == DATA
    assert site.asked[-1] == ("/a.zip", None)


def test_length_that_promises_too_much(site, tmp_path):
    site.resumes = False
    site.faults = ["longer"] * 2 * ATTEMPTS
    assert f"{ATTEMPTS} times in a row" in refusal(site, tmp_path)
    assert len(site.asked) == ATTEMPTS + 1


@pytest.mark.parametrize("options", [{}, {"checksum": None, "size": 3_000_000}])
def test_length_that_promises_too_little(site, tmp_path, options):
    site.faults = ["shorter"] * 3
    message = refusal(site, tmp_path, **options)
    assert "2,999,990 bytes" in message or "its md5 is" in message
    assert names(tmp_path) == []


def test_server_that_offers_another_length(site, tmp_path):
    message = refusal(site, tmp_path, size=5)
    assert "offers 3,000,000 bytes where 5 are expected" in message


def test_unsaid_length(site, tmp_path):
    site.faults = ["unsaid"]
    assert get(site, tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_wrong_checksum_leaves_nothing(site, tmp_path, kind):
    message = refusal(site, tmp_path, checksum=f"{kind}:00")
    assert f"its {kind} is" in message and "where 00 is expected" in message
    assert names(tmp_path) == [] and len(site.asked) == 1


def test_file_with_a_wrong_checksum_is_fetched_again(site, tmp_path, caplog):
    (tmp_path / "a.zip").write_bytes(b"damaged")
    assert get(site, tmp_path).read_bytes() == DATA
    assert "downloading it again" in caplog.text


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_refused_for_good_is_not_tried_again(site, tmp_path, code):
    site.faults = [str(code)] * 9
    message = refusal(site, tmp_path)
    assert f"answers {code}" in message and "--from-zip" in message and len(site.asked) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "http://nowhere.invalid/x", "nonsense"])
def test_no_connection(tmp_path, url):
    with pytest.raises(UserError, match=r"no connection|not a URL"):
        fetch(Source(url, "x"), tmp_path, pause=0, timeout=2)


def test_disk_space_is_looked_at_first(site, tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=download.SPARE_BYTES + 2_999_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    message = refusal(site, tmp_path)
    assert "3.0 MB needed" in message and "--data-dir" in message and names(tmp_path) == []
    usage.free += 1
    assert get(site, tmp_path).read_bytes() == DATA


def test_disk_that_fills_up_keeps_the_part(site, tmp_path, monkeypatch):
    def full(have: int, total: int | None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a.zip.part"))

    with pytest.raises(UserError, match="No space left"):
        fetch(Source(site.url + "/a.zip", "a.zip", MD5), tmp_path, progress=full, pause=0)
    assert get(site, tmp_path).read_bytes() == DATA
    assert site.asked[-1][1] is not None


def test_progress_counts_up_to_the_total(site, tmp_path):
    seen = []
    site.faults = ["break"]
    source = Source(site.url + "/a.zip", "a.zip", MD5)
    fetch(source, tmp_path, progress=lambda *pair: seen.append(pair), pause=0)
    assert [have for have, _ in seen] == sorted({have for have, _ in seen})
    assert seen[-1] == (3_000_000, 3_000_000) and {total for _, total in seen} == {3_000_000}
