"""Decoding of every kind of image, and a cache that is right, checked, and never half."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from tiny import ROOT

from utils_.datasets.cache import images as cache_module
from utils_.datasets.cache.decode import decode, decode_files
from utils_.datasets.cache.images import ImageRequest, load_images
from utils_.errors import UserError

RED = (200, 30, 60)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture without symmetry."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 255, (5, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def sixteen_bits(value: int) -> Image.Image:
    return Image.fromarray(np.full((20, 30), value, np.uint16))


def transparent(mode: str) -> Image.Image:
    """Left half opaque red (or grey), right half a bright colour that is fully transparent."""
    image = Image.new("RGBA", (30, 30), (*RED, 255))
    image.paste((0, 255, 0, 0), (15, 0, 30, 30))
    return image.convert(mode)


def red_palette() -> Image.Image:
    return Image.new("RGB", (30, 20), RED).convert("P", palette=Image.Palette.ADAPTIVE)


FLAT = {
    "png": (encoded(Image.new("RGB", (30, 20), RED), "PNG"), RED),
    "jpeg": (encoded(Image.new("RGB", (30, 20), RED), "JPEG"), RED),
    "tiff": (encoded(Image.new("RGB", (30, 20), RED), "TIFF"), RED),
    "tiff lzw": (encoded(Image.new("RGB", (30, 20), RED), "TIFF", compression="tiff_lzw"), RED),
    "bmp": (encoded(Image.new("RGB", (30, 20), RED), "BMP"), RED),
    "mpo": (
        encoded(
            Image.new("RGB", (30, 20), RED),
            "MPO",
            save_all=True,
            append_images=[Image.new("RGB", (30, 20))],
        ),
        RED,
    ),
    "grey": (encoded(Image.new("L", (30, 20), 77), "PNG"), (77,) * 3),
    "grey jpeg": (encoded(Image.new("L", (300, 200), 77), "JPEG"), (77,) * 3),
    "grey alpha": (encoded(Image.new("LA", (30, 20), (77, 255)), "PNG"), (77,) * 3),
    "one bit": (encoded(Image.new("1", (30, 20), 1), "PNG"), (255,) * 3),
    "16 bit png": (encoded(sixteen_bits(257 * 100), "PNG"), (100,) * 3),
    "16 bit tiff": (encoded(sixteen_bits(257 * 100), "TIFF"), (100,) * 3),
    "16 bit white": (encoded(sixteen_bits(65535), "PNG"), (255,) * 3),
    "palette": (encoded(red_palette(), "PNG"), RED),
    "cmyk jpeg": (encoded(Image.new("RGB", (30, 20), RED).convert("CMYK"), "JPEG"), RED),
    "cmyk tiff": (encoded(Image.new("RGB", (30, 20), RED).convert("CMYK"), "TIFF"), RED),
    "rgba": (encoded(Image.new("RGBA", (30, 20), (*RED, 255)), "PNG"), RED),
    "translucent": (encoded(Image.new("RGBA", (9, 9), (*RED, 128)), "PNG"), (100, 15, 30)),
}  # fmt: skip


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("kind", FLAT)
def test_every_kind_of_image(kind, fit):
    data, colour = FLAT[kind]
    image = decode(data, image_size=8, fit=fit)
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8
    assert np.abs(image[4, 4].astype(int) - colour).max() <= 3


def test_16_bit_values_keep_their_order():
    ramp = np.arange(0, 65536, 257, dtype=np.uint16)[:, None].repeat(256, 1)
    image = decode(encoded(Image.fromarray(ramp), "PNG"), image_size=256, fit="crop")
    np.testing.assert_array_equal(image[:, 0, 0], np.arange(256))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_become_black(mode):
    image = decode(encoded(transparent(mode), "PNG"), image_size=30, fit="crop")
    assert image[:, :14].min(axis=(0, 1)).max() > 60
    assert image[:, 16:].max() == 0


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(form, orientation):
    upright = scene(60, 40)
    # What the camera stores so that a viewer, obeying the tag, shows ``upright`` (EXIF 2.3, 4.6.4).
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](np.asarray(upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if form == "JPEG" else {}
    data = encoded(Image.fromarray(stored.copy()), form, exif=exif, **options)
    for fit in ("crop", "pad"):
        seen = decode(data, image_size=20, fit=fit).astype(int)
        expected = decode(encoded(upright, "PNG"), image_size=20, fit=fit).astype(int)
        assert np.abs(seen - expected).mean() < 2


def test_unreadable_exif_does_not_matter():
    image = scene(40, 40)
    data = encoded(image, "PNG", exif=b"Exif\0\0garbage!!")
    np.testing.assert_array_equal(
        decode(data, image_size=40, fit="crop"), np.asarray(image.convert("RGB"))
    )


@pytest.mark.parametrize("size", [(64, 64), (97, 64), (64, 131), (301, 200)])
def test_crop_is_the_centre_at_the_same_scale(size):
    image = scene(*size)
    expected = ImageOps.fit(image, (64, 64), Image.Resampling.BICUBIC)
    seen = decode(encoded(image, "PNG"), image_size=64, fit="crop")
    assert np.abs(seen.astype(int) - np.asarray(expected)).max() <= 2


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (50, 100), (1, 400), (400, 1), (1, 1)])
def test_pad_keeps_all_of_the_image(size):
    image = Image.new("RGB", size, (255, 255, 255))
    seen = decode(encoded(image, "PNG"), image_size=64, fit="pad")
    height, width = (max(1, round(64 * edge / max(size))) for edge in reversed(size))
    white = seen[..., 0] == 255
    assert white.sum() == height * width and (seen[~white] == 0).all()
    rows, columns = np.nonzero(white)
    assert (
        abs((rows.min() + rows.max()) - 63) <= 1 and abs((columns.min() + columns.max()) - 63) <= 1
    )


def test_reduction_is_antialiased():
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    for form in ("PNG", "BMP"):
        seen = decode(encoded(Image.fromarray(stripes), form), image_size=32, fit="crop")
        assert np.abs(seen.astype(int) - 127).max() <= 3  # nearest neighbour would give 0 or 255


def test_jpeg_reduced_while_decoding_is_close():
    image = scene(1600, 1100)
    seen = decode(encoded(image, "JPEG", quality=95), image_size=64, fit="crop").astype(int)
    expected = decode(encoded(image, "PNG"), image_size=64, fit="crop").astype(int)
    assert np.abs(seen - expected).mean() < 2


class Folder:
    """Twelve images on disk and the request for them."""

    def __init__(self, path: Path) -> None:
        self.path = path / "images"
        self.path.mkdir()
        self.files = [f"{number:02}.{form}" for number, form in enumerate(["png", "jpg"] * 6)]
        for number, file in enumerate(self.files):
            scene(40, 30, seed=number).save(self.path / file)
        self.cache = path / "deep" / "cache"
        self.request = ImageRequest(self.path, self.files, self.cache, image_size=16)

    def load(self, **changes):
        return load_images(replace(self.request, **changes))

    def cache_file(self) -> Path:
        (file,) = self.cache.glob("*.npy")
        return file

    def expected(self, rows=None, **options) -> np.ndarray:
        options = {"image_size": 16, "fit": "crop", **options}
        chosen = self.files if rows is None else [self.files[row] for row in rows]
        return np.stack([decode((self.path / file).read_bytes(), **options) for file in chosen])


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def no_decoding(monkeypatch):
    """Make any decoding fail from now on."""

    def forbid():
        monkeypatch.setattr(cache_module, "decode_files", None)

    return forbid


def left_behind(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def test_cold_then_warm(folder, no_decoding):
    cold = folder.load()
    np.testing.assert_array_equal(cold.images, folder.expected())
    assert isinstance(cold.images, np.memmap) and not cold.images.flags.writeable
    assert cold.rows.tolist() == list(range(12))
    no_decoding()
    warm = folder.load()
    np.testing.assert_array_equal(warm.images, cold.images)
    assert warm.key == cold.key and len(cold.key) == 32
    names = sorted(p.suffix for p in folder.cache.iterdir())
    assert names == [".json", ".json", ".npy"]  # no temporary file


def test_warm_start_does_not_read_the_images(folder, monkeypatch):
    folder.load()
    monkeypatch.setattr(cache_module, "content_digest", None)
    monkeypatch.setattr(cache_module, "decode_files", None)
    folder.load()


def test_processes_give_the_same_bytes(folder, monkeypatch):
    alone = folder.load(cache_dir=folder.cache / "1")
    monkeypatch.setattr(cache_module, "SMALL_BYTES", 0)
    monkeypatch.setattr("utils_.datasets.cache.decode.CHUNK_IMAGES", 5)
    together = folder.load(cache_dir=folder.cache / "2", workers=3)
    np.testing.assert_array_equal(alone.images, together.images)
    assert alone.key == together.key


def test_key_is_of_content_order_size_and_fit(folder, tmp_path):
    keys = [
        folder.load().key,
        folder.load(image_size=17).key,
        folder.load(fit="pad").key,
        folder.load(files=folder.files[::-1]).key,
        folder.load(files=folder.files[:5]).key,
    ]
    assert len(set(keys)) == len(keys)
    np.testing.assert_array_equal(
        folder.load(files=folder.files[::-1]).images, folder.expected()[::-1]
    )
    np.testing.assert_array_equal(folder.load(fit="pad").images, folder.expected(fit="pad"))


def test_copy_of_the_images_shares_the_cache(folder, tmp_path, no_decoding):
    first = folder.load()
    renamed = tmp_path / "elsewhere"
    shutil.copytree(folder.path, renamed)
    for file in folder.files:
        (renamed / file).rename(renamed / f"new {file}")
    no_decoding()
    again = folder.load(folder=renamed, files=[f"new {file}" for file in folder.files])
    assert again.key == first.key


def test_touched_images_are_not_decoded_again(folder, no_decoding):
    folder.load()
    for file in folder.files:
        os.utime(folder.path / file, (1, 1))
    no_decoding()
    folder.load()


@pytest.mark.parametrize("same_time", [False, True])
def test_changed_image_is_noticed(folder, same_time, caplog):
    before = folder.load()
    old = folder.cache_file()
    path = folder.path / "04.png"
    status = path.stat()
    data = encoded(Image.new("RGB", (40, 30), RED), "PNG")
    path.write_bytes(data + bytes(max(0, status.st_size - len(data))))
    if same_time:  # the same length and modification time, as after a careless copy
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_size == status.st_size
    after = folder.load()
    np.testing.assert_array_equal(after.images, folder.expected())
    assert after.images[4, 8, 8].tolist() == list(RED)
    assert after.key != before.key
    assert "have changed" in caplog.text and not old.exists()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1000] ^= 4
    path.write_bytes(data)


def other_shape(path: Path) -> None:
    np.save(path, np.zeros((12, 16, 8, 6), np.uint8))
    data = path.read_bytes()
    check = {"bytes": len(data), "crc32": zlib.crc32(data)}
    path.with_suffix(".json").write_text(json.dumps(check))


DAMAGE = {
    "truncated": truncate,
    "emptied": lambda path: path.write_bytes(b""),
    "one bit": flip_a_bit,
    "header": lambda path: path.write_bytes(b"x" * path.stat().st_size),
    "another shape": other_shape,
    "no checksum": lambda path: path.with_suffix(".json").unlink(),
    "checksum is no JSON": lambda path: path.with_suffix(".json").write_text("{"),
    "checksum is a list": lambda path: path.with_suffix(".json").write_text("[]"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_cache_is_built_again(folder, kind, caplog):
    key = folder.load().key
    DAMAGE[kind](folder.cache_file())
    again = folder.load()
    np.testing.assert_array_equal(again.images, folder.expected())
    assert again.key == key
    assert "is damaged" in caplog.text
    caplog.clear()
    folder.load()
    assert not caplog.text


@pytest.mark.parametrize("text", ["", "[]", '{"format":1}', '{"format":1,"files":{"00.png":[1]}}'])
def test_damaged_index_is_no_harm(folder, text, caplog, no_decoding):
    folder.load()
    (index,) = folder.cache.glob("index-*.json")
    index.write_text(text)
    no_decoding()
    np.testing.assert_array_equal(folder.load().images, folder.expected())
    assert "images are read again" in caplog.text


def test_deleted_cache_is_built_again(folder):
    folder.load()
    folder.cache_file().unlink()
    np.testing.assert_array_equal(folder.load().images, folder.expected())


def break_images(folder: Folder) -> dict[str, str]:
    """Break five images in five ways; return what should be said of each."""
    (folder.path / "00.png").unlink()
    (folder.path / "01.jpg").write_bytes((folder.path / "01.jpg").read_bytes()[:300])
    (folder.path / "02.png").write_bytes(b"")
    (folder.path / "03.jpg").write_text("<html>404</html>")
    values = np.full((4, 4), np.nan, np.float32)
    Image.fromarray(values).save(folder.path / "04.png", "TIFF")
    return {
        "00.png": "missing",
        "01.jpg": "truncated",
        "02.png": "broken, or not a png, jpeg, tiff or bmp image",
        "03.jpg": "broken, or not a png, jpeg, tiff or bmp image",
        "04.png": "nan or infinite pixels",
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_all_bad_images_in_one_line(folder, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(cache_module, "SMALL_BYTES", 0)
    bad = break_images(folder)
    before = left_behind(tmp_path)
    with pytest.raises(UserError) as caught:
        folder.load(workers=workers)
    message = str(caught.value)
    assert "\n" not in message
    assert "5 of 12 images cannot be used" in message and "--skip-bad-images" in message
    for file, reason in bad.items():
        assert reason in message.split(file)[1].split(")")[0].lower()
    assert left_behind(tmp_path) == before


def test_at_most_ten_bad_images_are_named(folder):
    for file in folder.files:
        (folder.path / file).unlink()
    with pytest.raises(UserError, match=r"12 of 12 .*09\.jpg \(missing\) and 2 more; correct"):
        folder.load()
    with pytest.raises(UserError, match="12 of 12"):
        folder.load(skip_bad_images=True)


def test_bad_images_are_left_out_on_request(folder, caplog, no_decoding):
    bad = break_images(folder)
    cold = folder.load(skip_bad_images=True)
    good = list(range(5, 12))
    assert cold.rows.tolist() == good
    np.testing.assert_array_equal(cold.images, folder.expected(good))
    for file in bad:
        assert file in caplog.text
    no_decoding()
    caplog.clear()
    warm = folder.load(skip_bad_images=True)
    assert warm.key == cold.key and warm.rows.tolist() == good
    assert "left out 5 of 12" in caplog.text
    # Without the option the same state stops at once, with nothing decoded.
    with pytest.raises(UserError, match="5 of 12"):
        folder.load()


def test_repaired_image_comes_back(folder):
    break_images(folder)
    folder.load(skip_bad_images=True)
    for number in range(5):
        form = "PNG" if number % 2 == 0 else "JPEG"
        scene(40, 30, seed=number).save(folder.path / folder.files[number], form)
    again = folder.load()
    assert len(again.rows) == 12
    np.testing.assert_array_equal(again.images, folder.expected())


def test_decompression_bomb_is_refused(folder):
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (folder.path / "00.png").write_bytes(bomb)
    with pytest.raises(UserError, match=r"00\.png \(Image size \(2500000000 pixels\) exceeds"):
        folder.load()


def test_folder_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("")
    before = left_behind(tmp_path)
    with pytest.raises(UserError, match=r"cannot be written .* --cache-dir") as caught:
        folder.load(cache_dir=tmp_path / "file" / "cache")
    assert "\n" not in str(caught.value)
    assert left_behind(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user")
def test_no_permission(folder, tmp_path):
    """The same as an unprivileged user, who may read the images but not write beside them."""
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(0o755)
    code = script(folder, folder.path / ".cache").replace(
        "request =", "os.setuid(65534)\nrequest ="
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "UserError" in done.stderr.splitlines()[-1], done.stderr
    assert "(Permission denied)" in done.stderr and "--cache-dir" in done.stderr


def test_full_disk_is_foreseen(folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    before = left_behind(tmp_path)
    with pytest.raises(UserError, match="MB free"):
        folder.load()
    assert left_behind(tmp_path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("workers", [1, 2])
def test_disk_that_fills_up_while_decoding(folder, tmp_path, workers, monkeypatch):
    """/dev/full answers every write with 'No space left on device'."""

    def into_full(paths, *, output, **options):
        return decode_files(paths, output=Path("/dev/full"), **options)

    monkeypatch.setattr(cache_module, "decode_files", into_full)
    monkeypatch.setattr(cache_module, "SMALL_BYTES", 0)
    before = left_behind(tmp_path)
    with pytest.raises(UserError, match=os.strerror(errno.ENOSPC)) as caught:
        folder.load(workers=workers)
    assert "--cache-dir" in str(caught.value)
    assert left_behind(tmp_path) == before


def test_reader_that_dies_is_reported(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    monkeypatch.setattr(cache_module, "SMALL_BYTES", 0)
    monkeypatch.setattr("utils_.datasets.cache.decode.CHUNK_IMAGES", 5)
    before = left_behind(tmp_path)
    with pytest.raises(UserError, match="exit code 1"):
        folder.load(workers=2)
    assert left_behind(tmp_path) == before


def test_interrupt_leaves_nothing(folder, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_module, "decode_files", interrupted)
    before = left_behind(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        folder.load()
    assert left_behind(tmp_path) == before


def test_old_temporary_files_are_cleared(folder):
    folder.cache.mkdir(parents=True)
    old, recent = folder.cache / ".1-1.npy.tmp", folder.cache / ".2-2.npy.tmp"
    for path in (old, recent):
        path.write_bytes(b"left by a killed process")
    os.utime(old, (1, 1))
    folder.load()
    assert not old.exists() and recent.exists()


def script(folder: Folder, cache: Path) -> str:
    return f"""
import os
from pathlib import Path
from utils_.datasets.cache import images as cache
cache.SMALL_BYTES = 0
request = cache.ImageRequest(
    Path({str(folder.path)!r}), {folder.files!r}, Path({str(cache)!r}), image_size=16, workers=2
)
print(cache.load_images(request).key)
"""


def test_script_without_main_guard(folder, tmp_path):
    """Reader processes do not import the caller's script again, and write nothing to stderr."""
    path = tmp_path / "script.py"
    path.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script(folder, folder.cache)}"
    )
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.split() == [folder.load(cache_dir=tmp_path / "other").key]
