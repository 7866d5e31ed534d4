"""Pixels of more than 8 bits, DICOM, and odd files: the right value, or one line that helps."""

from __future__ import annotations

import io
import json
import logging
import struct
import sys
import types
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from utils_.datasets.cache import images as cache_module
from utils_.datasets.cache.decode import decode
from utils_.datasets.cache.images import ImageRequest, load_images
from utils_.datasets.cache.pixel_range import common_range, parse_range, shades, used_range
from utils_.errors import UserError

SIZE = 16


def ramp(low: float, high: float, kind: type = np.uint16) -> np.ndarray:
    """SIZE rows of equal brightness, from ``low`` to ``high``."""
    return np.linspace(low, high, SIZE)[:, None].repeat(SIZE, 1).astype(kind)


def saved(values: np.ndarray, form: str = "TIFF", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, form, **options)
    return file.getvalue()


class Folder:
    """Images in a folder and the request for them."""

    def __init__(self, path: Path, *contents: bytes) -> None:
        path.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(contents):
            (path / f"{number}.png").write_bytes(data)
        files = [f"{number}.png" for number in range(len(contents))]
        self.request = ImageRequest(path, files, path / ".cache", image_size=SIZE)

    def load(self, **changes):
        return load_images(replace(self.request, **changes))

    def grey(self, **changes) -> np.ndarray:
        """(n, SIZE) brightness of the rows."""
        images = self.load(**changes).images
        assert (images == images[:, :, :1, :1]).all()  # grey, and rows of one brightness
        return images[:, :, 0, 0].astype(int)


FULL_RAMP = np.rint(np.linspace(0, 255, SIZE))
# Each: the two images of a set; the first must show a whole ramp, whatever its numbers mean.
SETS = {
    "12 bits": (saved(ramp(0, 4095)), saved(ramp(100, 3000))),
    "12 bits as PNG": (saved(ramp(0, 4095), "PNG"), saved(ramp(100, 3000), "PNG")),
    "14 bits, big-endian": (saved(ramp(0, 16383).astype(">u2")), saved(ramp(0, 900))),
    "10 bits of OCT": (saved(ramp(0, 1023)), saved(ramp(0, 1000))),
    "CT with an offset": (saved(ramp(31768, 35863)), saved(ramp(32768, 33000))),
    "16 bits": (saved(ramp(0, 65535)), saved(ramp(0, 40000))),
    "32-bit integers": (saved(ramp(0, 100_000, np.int32)), saved(ramp(0, 9, np.int32))),
    "signed Hounsfield units": (saved(ramp(-1024, 3071, np.int32)), saved(ramp(0, 80, np.int32))),
    "floats of 0 to 1": (saved(ramp(0, 1, np.float32)), saved(ramp(0.2, 0.9, np.float32))),
    "floats of any size": (saved(ramp(-5, 12.5, np.float32)), saved(ramp(0, 3, np.float32))),
}


@pytest.mark.parametrize("case", SETS)
def test_the_range_that_a_set_uses_is_shown(tmp_path, caplog, case):
    caplog.set_level(logging.INFO, logger="fednml")
    folder = Folder(tmp_path, *SETS[case])
    grey = folder.grey()
    assert np.abs(grey[0] - FULL_RAMP).max() <= 1
    assert "2 of 2 images have more than 8 bits: values from" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(folder.grey(), grey)  # from the cache, and still reported
    assert "2 of 2 images have more than 8 bits" in caplog.text and "decoded" not in caplog.text


def test_one_range_serves_the_whole_set(tmp_path):
    """Measured for each image, both would look alike, and a dark one like a bright one."""
    grey = Folder(tmp_path, saved(ramp(0, 4000)), saved(ramp(1000, 2000))).grey()
    np.testing.assert_array_equal(grey[1], np.rint(ramp(1000, 2000)[:, 0] * (255 / 4000)))


def test_eight_bits_keep_their_bits_beside_deep_images(tmp_path):
    eight = saved(ramp(0, 200, np.uint8), "PNG")
    grey = Folder(tmp_path, eight, saved(ramp(0, 4095))).grey()
    np.testing.assert_array_equal(grey[0], ramp(0, 200, np.uint8)[:, 0])


@pytest.mark.parametrize("pixel_range", ["full", "auto", "0,100"])
def test_the_range_is_no_matter_for_eight_bits(tmp_path, pixel_range):
    """Same key, same cache, same pixels."""
    folder = Folder(tmp_path, saved(ramp(0, 200, np.uint8), "PNG"))
    plain = folder.load(pixel_range="full")
    other = folder.load(pixel_range=pixel_range)
    assert other.key == plain.key and not other.facts.ranged
    np.testing.assert_array_equal(other.images, plain.images)
    assert len(list(folder.request.cache_dir.glob("*.npy"))) == 1


def test_every_range_has_a_cache_of_its_own(tmp_path):
    folder = Folder(tmp_path, saved(ramp(0, 4095)))
    keys = {text: folder.load(pixel_range=text).key for text in ("auto", "full", "0,4095", "0,999")}
    assert len(set(keys.values())) == 4
    assert folder.load(pixel_range="full").images.max() == 16  # 4095 / 257, as in version 0.1
    clipped = folder.grey(pixel_range="0,999")[0]
    np.testing.assert_array_equal(clipped, shades(ramp(0, 4095), (0, 999))[:, 0])
    assert {text: folder.load(pixel_range=text).key for text in keys} == keys


def test_a_cache_of_an_earlier_version_is_not_shown_black(tmp_path):
    """It was decoded at full range; nothing beside it says that its images are deep."""
    folder = Folder(tmp_path, saved(ramp(0, 4095)))
    old = folder.request.cache_dir / f"{folder.load(pixel_range='full').key}.npy"
    checks = json.loads(old.with_suffix(".json").read_text())
    text = json.dumps({name: checks[name] for name in ("bytes", "crc32")})
    old.with_suffix(".json").write_text(text)
    assert folder.grey().max() == 255


def test_reader_processes_measure_the_same(tmp_path, monkeypatch):
    contents = [saved(ramp(0, 1000 + 100 * number)) for number in range(6)]
    alone = Folder(tmp_path / "a", *contents).load()
    monkeypatch.setattr(cache_module, "SMALL_BYTES", 0)
    monkeypatch.setattr("utils_.datasets.cache.decode.CHUNK_IMAGES", 2)
    together = Folder(tmp_path / "b", *contents).load(workers=2)
    np.testing.assert_array_equal(together.images, alone.images)
    assert together.facts == alone.facts and together.key == alone.key


def test_an_odd_image_that_makes_the_others_black_is_reported(tmp_path, caplog):
    """Three of 12 bits, one of 16: the line names a range, and that range shows the three."""
    contents = [saved(ramp(0, 4095)) for _ in range(3)]
    folder = Folder(tmp_path, *contents, saved(ramp(0, 65535)))
    assert folder.grey()[:3].max() <= 16
    assert "3 of these use less than an eighth of that range" in caplog.text
    advised = caplog.text.partition("--pixel-range=")[2].partition(" ")[0]
    assert np.abs(folder.grey(pixel_range=advised)[:3] - FULL_RAMP).max() <= 1


def test_skipped_images_do_not_shift_the_deep_ones(tmp_path):
    deep = [saved(ramp(0, 4095)), saved(ramp(0, 2000))]
    folder = Folder(tmp_path, saved(ramp(0, 90, np.uint8), "PNG"), b"broken", *deep)
    found = folder.load(skip_bad_images=True)
    assert found.rows.tolist() == [0, 2, 3]
    expected = [ramp(0, 90, np.uint8), shades(ramp(0, 4095), (0, 4095))]
    expected.append(shades(ramp(0, 2000), (0, 4095)))
    np.testing.assert_array_equal(found.images[:, :, :, 0], expected)


def test_dead_pixels_do_not_count():
    values = ramp(0, 4095).repeat(20, 0).repeat(20, 1)
    values[0, :9] = 65535
    assert used_range(values) == (0, 4095)
    assert common_range([(3, 3)]) == (3, 4)  # of one value: all black, and no division by 0


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("auto", None),
        ("full", None),
        ("0,4095", (0, 4095)),
        ("-160,240", (-160, 240)),
        (" 0.5 , 1e3", (0.5, 1000)),
    ],
)
def test_ranges(text, bounds):
    assert parse_range(text) == bounds


@pytest.mark.parametrize("text", ["", "max", "5", "9,1", "1,1", "0,nan", "0,inf", "1,2,3", "0-9"])
def test_wrong_ranges_are_one_line_that_shows_a_right_one(tmp_path, capsys, text):
    data = tiny.write_csv_dataset(tmp_path / "data")
    options = [*tiny.command(data, tmp_path / "save"), "--dry-run"]
    assert tiny.call_main([*options, f"--pixel-range={text}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "auto, full or two numbers" in err
    assert tiny.call_main([*options, err.split()[-1]]) == 0


# ---- odd files


def white_is_zero(values: np.ndarray) -> bytes:
    return saved(values, tiffinfo={262: 0})


def test_a_negative_of_16_bits_is_turned_round(tmp_path):
    """TIFF's WhiteIsZero, which Pillow obeys at 8 bits only."""
    folder = Folder(tmp_path, white_is_zero(ramp(0, 4095)), saved(ramp(0, 4095)))
    grey = folder.grey()
    np.testing.assert_array_equal(grey[0], 255 - grey[1])


def png_of_16_bit_colours(values: np.ndarray) -> bytes:
    """Written by hand, since Pillow cannot: colour type 2 at depth 16."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_colours_of_16_bits(tmp_path):
    """48-bit files of fundus cameras: the upper byte is right only where the range is full."""
    full = png_of_16_bit_colours(ramp(0, 65535)[:, :, None].repeat(3, 2))
    assert np.abs(Folder(tmp_path / "full", full).grey()[0] - FULL_RAMP).max() <= 1
    dark = Folder(tmp_path / "dark", png_of_16_bit_colours(ramp(0, 4095)[:, :, None].repeat(3, 2)))
    dark.load(pixel_range="full")  # its cache must not serve auto
    with pytest.raises(UserError, match="use less than an eighth of their range; scale them"):
        dark.load()
    as_advised = saved(ramp(0, 255, np.uint8)[:, :, None].repeat(3, 2), "PNG")
    assert Folder(tmp_path / "dark", as_advised).grey().max() == 255


def test_several_pages_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="fednml")
    pages = [Image.fromarray(ramp(0, top, np.uint8)) for top in (200, 100)]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    assert Folder(tmp_path, file.getvalue()).grey().max() == 200
    assert "1 files hold several pages or frames: the first is used" in caplog.text


FOREIGN = {
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "GIF": (b"GIF89a", "GIF image; save it as PNG"),  # DRIVE's masks
    "WebP": (b"RIFF\0\0\0\0WEBP", "WebP image; save it as PNG"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n", "JPEG 2000 image; save it as PNG"),
    "PGM": (b"P5 2 2 255 abcd", "PGM image; save it as PNG"),  # mini-MIAS
    "PPM": (b"P6 1 1 255 abc", "PPM image; save it as PNG"),  # STARE
    "NIfTI": (b"\x1f\x8b\x08", "perhaps NIfTI; save its slices as PNG"),
    "ZIP": (b"PK\x03\x04", "unpack it"),
    "AppleDouble": (b"\0\x05\x16\x07\0\x02", "attributes that macOS keeps"),
    "web page": (b"<!DOCTYPE html>", "broken, or not a PNG"),
    "NaN": (saved(np.full((4, 4), np.nan, np.float32)), "NaN or infinite pixels"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_files_that_are_no_usable_image_are_named(tmp_path, case):
    data, words = FOREIGN[case]
    with pytest.raises(UserError, match=words) as caught:
        Folder(tmp_path, data).load()
    assert "\n" not in str(caught.value)
    good = saved(ramp(0, 255, np.uint8), "PNG")
    assert Folder(tmp_path, good).load().rows.tolist() == [0]  # saved as PNG


def test_full_range_of_32_bits_is_refused_and_auto_works(tmp_path):
    folder = Folder(tmp_path, saved(ramp(0, 1, np.float32)))
    with pytest.raises(UserError, match="use --pixel-range auto"):
        folder.load(pixel_range="full")
    assert folder.grey(pixel_range="auto").max() == 255


# ---- DICOM, with a stand-in for pydicom: the real package is optional


class FakeFile(types.SimpleNamespace):
    def get(self, name: str, default: object = None) -> object:
        return getattr(self, name, default)


DICOM = bytes(128) + b"DICM"
PLAIN = {"PhotometricInterpretation": "MONOCHROME2", "BitsStored": 12, "BitsAllocated": 16}


@pytest.fixture
def slices(monkeypatch) -> list[dict]:
    """What the files hold, one after the other; the last byte of a file is its number."""
    files: list[dict] = []
    package = types.SimpleNamespace(
        dcmread=lambda file: FakeFile(**PLAIN | files[file.getvalue()[-1]])
    )
    monkeypatch.setitem(sys.modules, "pydicom", package)
    return files


def dicom_folder(path: Path, slices: list[dict], *contents: dict) -> Folder:
    slices.extend(contents)
    return Folder(path, *(DICOM + bytes([number]) for number in range(len(contents))))


HU = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}
# Each: what a file holds; the rows that come out.
SLICES = {
    "12 bits": ({"pixel_array": ramp(0, 4095)}, FULL_RAMP),
    "MONOCHROME1": (
        {"pixel_array": ramp(0, 4095), "PhotometricInterpretation": "MONOCHROME1"},
        FULL_RAMP[::-1],
    ),
    "a CT window": (  # from -160 to 240 Hounsfield units, PS3.3 C.11.2.1.2
        {"pixel_array": ramp(0, 4095), **HU, "WindowCenter": 40, "WindowWidth": 400},
        shades(ramp(0, 4095).astype(float) - 1024, (-160, 239))[:, 0],
    ),
    "several windows": (
        {"pixel_array": ramp(0, 4095), "WindowCenter": [2048, 1], "WindowWidth": [4096, 2]},
        shades(ramp(0, 4095), (0, 4095))[:, 0],
    ),
    "an exact window": (
        {
            "pixel_array": ramp(0, 4095),
            "WindowCenter": 1000,
            "WindowWidth": 2000,
            "VOILUTFunction": "LINEAR_EXACT",
        },
        shades(ramp(0, 4095), (0, 2000))[:, 0],
    ),
    "blank window": (
        {"pixel_array": ramp(0, 4095), "WindowCenter": "", "WindowWidth": None},
        FULL_RAMP,
    ),
    "8 bits of ultrasound": (
        {"pixel_array": ramp(0, 90, np.uint8), "BitsStored": 8},
        ramp(0, 90, np.uint8)[:, 0],
    ),
    "colour": (
        {
            "pixel_array": ramp(0, 90, np.uint8)[:, :, None].repeat(3, 2),
            "PhotometricInterpretation": "RGB",
        },
        ramp(0, 90, np.uint8)[:, 0],
    ),
}


@pytest.mark.parametrize("case", SLICES)
def test_dicom(tmp_path, slices, case):
    content, expected = SLICES[case]
    grey = dicom_folder(tmp_path, slices, content).grey()
    assert np.abs(grey[0] - expected).max() <= 1


def test_padding_does_not_stretch_the_range(tmp_path, slices):
    """What lies outside the scanner's circle is no value."""
    stored = np.where(np.arange(SIZE)[:, None] < 3, -2000, ramp(0, 4095, np.int16))
    content = {"pixel_array": stored, "PixelPaddingValue": -2000, "PixelRepresentation": 1}
    grey = dicom_folder(tmp_path, slices, content).grey()[0]
    assert grey[:4].max() == 0 and grey[-1] == 255


def test_a_given_range_outranks_the_window(tmp_path, slices, caplog):
    caplog.set_level(logging.INFO, logger="fednml")
    folder = dicom_folder(tmp_path, slices, SLICES["a CT window"][0])
    folder.load()
    assert "1 of 1 images are shown through the window" in caplog.text
    wide = folder.grey(pixel_range="-1024,3071")[0]
    assert np.abs(wide - FULL_RAMP).max() <= 1


BAD_SLICES = {
    "several frames": ({"NumberOfFrames": "30"}, "DICOM of 30 frames; save one image for each"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR; save it as PNG"),
    "YBR": ({"PhotometricInterpretation": "YBR_FULL_422"}, "YBR_FULL_422; save it as PNG"),
}


@pytest.mark.parametrize("case", BAD_SLICES)
def test_dicom_that_cannot_be_shown_is_named(tmp_path, slices, case):
    content, words = BAD_SLICES[case]
    folder = dicom_folder(tmp_path, slices, {"pixel_array": ramp(0, 4095)} | content)
    with pytest.raises(UserError, match=words):
        folder.load()


def test_dicom_without_pydicom_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"0\.png \(DICOM; pip install pydicom, or save it as PNG"):
        Folder(tmp_path, DICOM).load()


def test_compressed_dicom_names_what_decodes_it(tmp_path, slices):
    class Compressed(FakeFile):
        @property
        def pixel_array(self) -> np.ndarray:
            raise RuntimeError("Unable to decompress 'JPEG 2000' pixel data")

    folder = dicom_folder(tmp_path, slices, {})
    sys.modules["pydicom"].dcmread = lambda file: Compressed(**PLAIN)
    with pytest.raises(UserError, match=r"lacks a decoder; pip install pylibjpeg\[all\]"):
        folder.load()


def test_real_dicom_equals_its_numbers(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="the optional package is absent")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    file = FileDataset("a.dcm", {}, file_meta=meta, preamble=bytes(128))
    file.Rows = file.Columns = SIZE
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME1"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.RescaleSlope, file.RescaleIntercept = 1, -1024
    file.PixelData = ramp(0, 4095).tobytes()
    buffer = io.BytesIO()
    file.save_as(buffer)
    folder = Folder(tmp_path, buffer.getvalue())
    assert np.abs(folder.grey()[0] - FULL_RAMP[::-1]).max() <= 1
    file.WindowCenter, file.WindowWidth = 40, 400
    again = io.BytesIO()
    file.save_as(again)
    windowed = shades(ramp(0, 4095).astype(float) - 1024, (-160, 239))[:, 0].astype(int)
    image = decode(again.getvalue(), image_size=SIZE, fit="crop", pixel_range="auto")
    np.testing.assert_array_equal(image[:, 0, 0], 255 - windowed)
