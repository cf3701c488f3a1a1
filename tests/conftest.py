"""Fixtures of the whole suite."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data, outside the project: `MEDSEG_BRN_DATA`, or `../shared/data` from the project's root."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MEDSEG_BRN_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set MEDSEG_BRN_DATA")
    return folder


class FileServer(BaseHTTPRequestHandler):
    """A file server as archives lie on: it knows ranges, and can be told to misbehave."""

    files: ClassVar[dict[str, bytes]] = {}
    knows_ranges: ClassVar[bool] = True
    breaks_off_after: ClassVar[int | None] = None
    """Bytes of the body after which the connection drops, though more were announced."""
    ranges_asked: ClassVar[list[str | None]] = []
    redirects: ClassVar[dict[str, str]] = {}
    """Path -> where it leads instead."""
    never_ends: ClassVar[bool] = False
    """Zeros without end, of a length that is not announced, stand for every file."""

    def do_GET(self) -> None:
        content = self.files.get(self.path)
        asked = self.headers.get("Range")
        self.ranges_asked.append(asked)
        if self.path in self.redirects:
            self.send_response(302)
            self.send_header("Location", self.redirects[self.path])
            self.end_headers()
            return
        if content is None:
            self.send_error(404)
            return
        start = 0
        if asked and self.knows_ranges:
            match = re.fullmatch(r"bytes=(\d+)-", asked)
            assert match, asked
            start = int(match[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.never_ends:
            self.end_headers()
            with suppress(ConnectionError):
                while True:
                    self.wfile.write(bytes(1 << 16))
            return
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.breaks_off_after])

    def log_message(self, format: str, *args: object) -> None:
        """Silence: what a test fails with is in its own output."""


class Server:
    """A running server: put files, see what was asked."""

    def __init__(self, handler: type[FileServer], url: str) -> None:
        self.handler = handler
        self.url = url

    def put(self, name: str, content: bytes) -> None:
        self.handler.files[f"/{name}"] = content


@pytest.fixture
def server() -> Iterator[Server]:
    handler = type("Handler", (FileServer,), {"files": {}, "ranges_asked": [], "redirects": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield Server(handler, f"http://127.0.0.1:{running.server_port}")
        running.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def write_dicom_series():
    """Writes a DICOM series; tests that ask for it skip without pydicom."""
    return _write_dicom_series


def _write_dicom_series(folder: Path, slices: int, orientation: list[int], **changes) -> Path:
    """Slices of 8 rows of 1.5 mm and 16 columns of 0.7 mm, 3 mm apart, the last one first by name."""
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom, which highdicom brings")
    folder.mkdir()
    study, frame = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    series = pydicom.uid.generate_uid()
    normal = np.cross(orientation[:3], orientation[3:])
    for number in range(slices):
        made = pydicom.Dataset()
        made.file_meta = pydicom.dataset.FileMetaDataset()
        made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = pydicom.uid.CTImageStorage
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = pydicom.uid.generate_uid()
        made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = study, series, frame
        made.PatientID, made.PatientName, made.Modality = "p7", "Doe^Jane", "CT"
        made.StudyID, made.SeriesNumber, made.InstanceNumber = "1", 3, number + 1
        made.Rows, made.Columns, made.PixelSpacing = 8, 16, [1.5, 0.7]
        made.ImageOrientationPatient = orientation
        made.ImagePositionPatient = (np.array([10.0, 20.0, 30.0]) + 3.0 * number * normal).tolist()
        made.BitsAllocated = made.BitsStored = 16
        made.HighBit, made.PixelRepresentation, made.SamplesPerPixel = 15, 1, 1
        made.PhotometricInterpretation = "MONOCHROME2"
        made.PixelData = np.full((8, 16), number, np.int16).tobytes()
        for name, value in changes.items():
            setattr(made, name, value)
            if value is None:
                delattr(made, name)
        made.save_as(folder / f"{slices - number:03d}.dcm", enforce_file_format=True)
    return folder
