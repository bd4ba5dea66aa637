"""Load MNIST from good and bad mirrors, and the digits that need no mirror."""

import gzip
import hashlib
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.autoencoder import datasets
from pipeline.core.errors import PipelineError
from tests.mirror import Mirror

# Small stand-ins in MNIST's format. Their checksums replace the real ones.
N_IMAGES = {"train": 20, "t10k": 10}


@pytest.fixture
def files(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Make `mirror` serve small files, packed, as the genuine ones; return their unpacked contents by name."""
    generator = np.random.default_rng(0)
    unpacked = {}
    for name in datasets.MNIST_SHA256:
        n = N_IMAGES[name.split("-")[0]]
        size, header = (n * 784, 16) if "images" in name else (n, 8)
        unpacked[name] = bytes(header) + generator.integers(0, 10, size, dtype=np.uint8).tobytes()
        mirror.files[f"{name}.gz"] = gzip.compress(unpacked[name])
        monkeypatch.setitem(datasets.MNIST_SHA256, name, hashlib.sha256(unpacked[name]).hexdigest())
    monkeypatch.setenv("MNIST_MIRROR", mirror.url)
    return unpacked


def closed_port() -> str:
    """Return an address where nothing listens."""
    with Mirror() as gone:
        return gone.url


def test_the_four_files_become_images_and_labels(files: dict[str, bytes], tmp_path: Path) -> None:
    """Pixels and labels equal the files' contents without the headers."""
    train, test = datasets.mnist(tmp_path)
    assert train.images.shape == (20, 28, 28)
    assert test.labels.shape == (10,)
    assert train.images.tobytes() == files["train-images-idx3-ubyte"][16:]
    assert test.labels.tobytes() == files["t10k-labels-idx1-ubyte"][8:]


def test_cached_files_are_not_downloaded_again(files: dict[str, bytes], mirror: Mirror, tmp_path: Path) -> None:
    """A second call sends no request to the mirror, and the folder holds only the four files."""
    datasets.mnist(tmp_path)
    assert set(mirror.requests) == set(mirror.files)
    assert datasets.is_cached(tmp_path)
    mirror.requests.clear()
    datasets.mnist(tmp_path)
    assert not mirror.requests
    assert {path.name for path in tmp_path.iterdir()} == set(files)


@pytest.mark.parametrize("damage", ["truncated", "one bit flipped"])
def test_a_damaged_raw_file_is_downloaded_again(
    files: dict[str, bytes], mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """Only the damaged file is downloaded again, and a warning names it."""
    datasets.mnist(tmp_path)
    mirror.requests.clear()
    path = tmp_path / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[:-1]
    else:
        content[100] ^= 1
    path.write_bytes(content)
    assert not datasets.is_cached(tmp_path)
    datasets.mnist(tmp_path)
    assert set(mirror.requests) == {"t10k-images-idx3-ubyte.gz"}
    assert path.read_bytes() == files[path.name]
    assert "t10k-images-idx3-ubyte is damaged" in capsys.readouterr().err


def test_a_mirror_that_serves_other_content_is_refused(files: dict[str, bytes], mirror: Mirror, tmp_path: Path) -> None:
    """Content that is not MNIST's raises an error that names the file, and the folder stays empty."""
    mirror.files["train-images-idx3-ubyte.gz"] = gzip.compress(files["train-images-idx3-ubyte"][:-1] + b"\xff")
    with pytest.raises(PipelineError, match="no mirror has a genuine train-images-idx3-ubyte") as error:
        datasets.mnist(tmp_path)
    assert "its content is not MNIST's" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("404", "HTTP Error 404"),
        ("html", "the response is not a complete gzip archive"),
        ("cut", "the response is not a complete gzip archive"),
        ("silent", "timed out"),
    ],
)
def test_a_failing_mirror_ends_soon_in_an_error(
    files: dict[str, bytes],
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    expected: str,
) -> None:
    """A 404, a sign-in page, half a file or silence soon raises an error that names the address."""
    if fault == "silent":
        monkeypatch.setattr(datasets, "STALL_SECONDS", 0.3)
    mirror.fault = fault
    started = time.monotonic()
    with pytest.raises(PipelineError, match=expected) as error:
        datasets.mnist(tmp_path)
    assert time.monotonic() - started < 10
    assert f"{mirror.url}train-images-idx3-ubyte.gz" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_next_mirror_is_tried(
    files: dict[str, bytes], mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MNIST_MIRROR may name several mirrors, and those that fail are skipped."""
    with Mirror() as bad:
        bad.fault = "html"
        monkeypatch.setenv("MNIST_MIRROR", f"{closed_port()}, {bad.url} {mirror.url}")
        train, _ = datasets.mnist(tmp_path)
    assert len(train) == 20


def test_no_mirror_can_be_reached(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no mirror is reachable, the error suggests another mirror or the digits."""
    monkeypatch.setenv("MNIST_MIRROR", closed_port())
    assert datasets.reachable_mirror() is None
    with pytest.raises(PipelineError, match="set MNIST_MIRROR to a reachable mirror") as error:
        datasets.mnist(tmp_path)
    assert "dvc exp run -S data.dataset=digits" in str(error.value)


def test_a_mirror_that_answers_with_an_error_is_reachable(files: dict[str, bytes], mirror: Mirror) -> None:
    """A mirror that answers is reachable, even with an error; only an unreachable mirror changes the data set."""
    assert datasets.reachable_mirror() == mirror.url
    mirror.fault = "404"
    assert datasets.reachable_mirror() == mirror.url


@pytest.mark.parametrize("value", ["file:///tmp/mnist", "example.org/mnist", "http://"])
def test_mnist_mirror_must_be_an_address(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A value that is not an http(s) address is rejected before any request."""
    monkeypatch.setenv("MNIST_MIRROR", value)
    with pytest.raises(PipelineError, match="MNIST_MIRROR must be one or more http"):
        datasets.mirrors()


def test_the_default_mirrors_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without MNIST_MIRROR the mirrors are torchvision's own list."""
    from torchvision.datasets import MNIST

    monkeypatch.delenv("MNIST_MIRROR", raising=False)
    assert datasets.mirrors() == MNIST.mirrors


def test_digits_are_28_by_28_with_their_own_test_set() -> None:
    """There are 1,500 and 297 images, upright, with the full range of ink and all ten digits in both sets."""
    labelled, test = datasets.digits()
    assert (len(labelled), len(test)) == (1500, 297)
    assert labelled.images.shape[1:] == (28, 28)
    assert labelled.images.max() == 255
    assert set(labelled.labels) == set(test.labels) == set(range(10))
    # These bytes are the same on every machine, and everything downstream depends on them.
    digest = hashlib.sha256(labelled.images.tobytes() + test.images.tobytes()).hexdigest()
    assert digest.startswith("415912b3b682b269")
