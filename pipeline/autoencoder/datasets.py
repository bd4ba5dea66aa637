"""Load the images: MNIST from its mirrors (or from MNIST_MIRROR), or scikit-learn's digits."""

import gzip
import hashlib
import os
import shutil
import socket
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from pipeline.autoencoder.splits import IMAGE_SHAPE, Split
from pipeline.core.errors import PipelineError

# SHA-256 of the unpacked files of LeCun, Cortes and Burges. The hash covers the content, not the archive, because a
# mirror may have compressed the same content again.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
# A download that receives nothing for this long is aborted, and the next mirror is tried.
STALL_SECONDS = 20.0
# The last 297 of scikit-learn's 1,797 digits are the test set. Like MNIST's, it does not depend on the split.
N_DIGITS_TEST = 297


def mnist(raw_folder: Path) -> tuple[Split, Split]:
    """Return MNIST's 60,000 training and 10,000 test images; download missing files into `raw_folder`.

    Each call checks the content of every file and downloads damaged files again.

    Raises:
        PipelineError: no mirror served a file with MNIST's content.
    """
    for name in MNIST_SHA256:
        path = raw_folder / name
        if path.is_file():
            if _is_genuine(path):
                continue
            print(f"warning: {path} is damaged; fetching it again", file=sys.stderr)
        _fetch(name, raw_folder)
    return (
        Split(_idx_images(raw_folder / "train-images-idx3-ubyte"), _idx_labels(raw_folder / "train-labels-idx1-ubyte")),
        Split(_idx_images(raw_folder / "t10k-images-idx3-ubyte"), _idx_labels(raw_folder / "t10k-labels-idx1-ubyte")),
    )


def digits() -> tuple[Split, Split]:
    """Return scikit-learn's 8×8 digits, resized to 28×28: 1,500 for training and 297 for the test."""
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    levels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # the originals have levels 0…16
    # Pillow resizes 8-bit images in fixed-point arithmetic, so the bytes are the same on every machine.
    resized = [np.asarray(Image.fromarray(image).resize(IMAGE_SHAPE, Image.Resampling.BILINEAR)) for image in levels]
    images, labels = np.stack(resized), bunch.target.astype(np.uint8)
    return Split(images[:-N_DIGITS_TEST], labels[:-N_DIGITS_TEST]), Split(
        images[-N_DIGITS_TEST:], labels[-N_DIGITS_TEST:]
    )


def mirrors() -> list[str]:
    """Return the mirrors to try, in order: those in MNIST_MIRROR (separated by spaces or commas), else torchvision's.

    Raises:
        PipelineError: an entry of MNIST_MIRROR is not an http(s) address.
    """
    named = os.environ.get("MNIST_MIRROR", "").replace(",", " ").split()
    for url in named:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise PipelineError(f"MNIST_MIRROR must be one or more http(s) addresses, got {url!r}")
    if not named:
        from torchvision.datasets import MNIST

        named = MNIST.mirrors
    return [url.rstrip("/") + "/" for url in named]


def is_cached(raw_folder: Path) -> bool:
    """Return whether all four raw files exist and are genuine, so that no download is needed."""
    return all((raw_folder / name).is_file() and _is_genuine(raw_folder / name) for name in MNIST_SHA256)


def reachable_mirror() -> str | None:
    """Return the first mirror that answers, even with an HTTP error; None if none does."""
    from urllib.error import HTTPError
    from urllib.request import urlopen

    for mirror in mirrors():
        try:
            urlopen(f"{mirror}t10k-labels-idx1-ubyte.gz", timeout=STALL_SECONDS).close()
        except HTTPError:
            return mirror
        except (OSError, HTTPException):
            continue
        return mirror
    return None


def _fetch(name: str, raw_folder: Path) -> None:
    """Download one file from the first mirror that has it, and move it into place only if it is genuine."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # fewer lines of torchvision's progress bar in a log
    from torchvision.datasets.utils import download_url

    raw_folder.mkdir(parents=True, exist_ok=True)
    failures = []
    answered_wrongly = False
    for mirror in mirrors():
        url = f"{mirror}{name}.gz"
        # Each download has its own folder, so two experiments never write to the same file.
        with tempfile.TemporaryDirectory(dir=raw_folder, prefix=".download-") as folder:
            archive, unpacked = Path(folder, f"{name}.gz"), Path(folder, name)
            try:
                with _stall_limit(STALL_SECONDS):
                    download_url(url, folder, archive.name)
                with gzip.open(archive) as source, unpacked.open("wb") as target:
                    shutil.copyfileobj(source, target)
            except (gzip.BadGzipFile, EOFError, zlib.error):
                answered_wrongly = True
                failures.append(f"{url}: the response is not a complete gzip archive")
            except (OSError, HTTPException, RuntimeError) as error:
                failures.append(f"{url}: {error}")
            else:
                if _is_genuine(unpacked):
                    unpacked.replace(raw_folder / name)
                    return
                answered_wrongly = True
                failures.append(f"{url}: its content is not MNIST's (SHA-256 differs)")
    tried = "".join(f"\n  {failure}" for failure in failures)
    if answered_wrongly:
        raise PipelineError(f"no mirror has a genuine {name}; set MNIST_MIRROR to one that has. Tried:{tried}")
    raise PipelineError(
        f"MNIST cannot be downloaded ({name}). Either set MNIST_MIRROR to a reachable mirror, or use "
        f"scikit-learn's digits: dvc exp run -S data.dataset=digits. Tried:{tried}"
    )


@contextmanager
def _stall_limit(seconds: float) -> Iterator[None]:
    """Set the process's default socket timeout inside the block, because torchvision's downloader sets none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _is_genuine(path: Path) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == MNIST_SHA256[path.name]


# The hash of a file is checked before it is read, so the IDX headers (16 and 8 bytes) need no parsing.
def _idx_images(path: Path) -> np.ndarray:
    return np.frombuffer(path.read_bytes(), np.uint8, offset=16).reshape(-1, *IMAGE_SHAPE)


def _idx_labels(path: Path) -> np.ndarray:
    return np.frombuffer(path.read_bytes(), np.uint8, offset=8)
