"""Head CT slices from DICOM to PNG, as doctors look at them: through three windows."""

from __future__ import annotations

import csv
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from utils_.errors import UserError
from utils_.files import atomic_path

logger = logging.getLogger("fednml")
# Level and width in Hounsfield units: brain, subdural and bone, as red, green and blue.
WINDOWS = ((40, 80), (80, 200), (600, 2800))


@dataclass
class IchConverter:
    """Turns slices into PNG files and notes the patient of each, which PNG has no place for.

    Attributes:
        notes: the CSV file that grows by a line an image; it outlives a broken-off run.
    """

    notes: Path

    def __call__(self, name: str, data: bytes) -> bytes | None:
        """Return a slice as PNG, see window; None (logged) if it cannot be read.

        Raises:
            UserError: pydicom is absent.
        """
        pydicom = _pydicom()
        from PIL import Image

        try:
            slice_ = pydicom.dcmread(io.BytesIO(data))
            raw = slice_.pixel_array
            slope, intercept = float(slice_.RescaleSlope), float(slice_.RescaleIntercept)
            patient = str(slice_.PatientID)
        except Exception as error:  # decoders raise nearly anything; all of it is reported
            logger.warning("%s: left out, not a readable DICOM slice (%s)", name, error)
            return None
        buffer = io.BytesIO()
        Image.fromarray(window(raw.astype(np.float32) * slope + intercept)).save(buffer, "PNG")
        with self.notes.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([name.rpartition("/")[2].removesuffix(".dcm"), patient])
        return buffer.getvalue()

    def write_groups(self, folder: Path) -> None:
        """Write groups.csv from the notes."""
        if not self.notes.exists():
            return
        with self.notes.open(newline="", encoding="utf-8") as file:
            patients = {row[0]: row[1] for row in csv.reader(file) if len(row) == 2}
        with (
            atomic_path(folder / "groups.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerows([("image", "patient_id"), *patients.items()])


def window(hounsfield: np.ndarray) -> np.ndarray:
    """Turn (H, W) Hounsfield units into (H, W, 3) uint8, a channel for each of WINDOWS."""
    channels = [(hounsfield - (level - width / 2)) / width for level, width in WINDOWS]
    shades: np.ndarray = np.rint(np.stack(channels, axis=-1).clip(0, 1) * 255)
    return shades.astype(np.uint8)


def _pydicom() -> ModuleType:
    try:
        import pydicom
    except ImportError as error:
        raise UserError("ich: reading DICOM needs pydicom; pip install pydicom") from error
    module: ModuleType = pydicom
    return module
