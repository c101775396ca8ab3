"""Public data sets, fetched and unpacked. Interrupted at any point, the same call goes on where it was.

Below the root lie the unpacked folders; meanwhile also NAME.zip.partial and then NAME.zip, and in .fetched/
what is done. An archive that was put there by hand is taken instead of being fetched.
"""

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pooch
import requests
from filelock import FileLock, Timeout
from requests.exceptions import ChunkedEncodingError
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential
from tenacity.wait import wait_base

COCO = "http://images.cocodataset.org"
TIMEOUT = (10, 60)  # seconds: to connect, and without a byte
CHUNK = 1 << 16  # bytes; as many are lost when a connection breaks
ATTEMPTS = 6  # in a row that bring nothing new
WAIT: wait_base = wait_exponential(max=30)
PASSING = (requests.ConnectionError, requests.Timeout, ChunkedEncodingError)


@dataclass(frozen=True)
class Archive:
    """A zip below a server's address, the folder that all of its files lie in, and its MD5."""

    path: str
    folder: str
    md5: str


# COCO publishes no checksums. These are those of DeepMind's dm_nevis and of twsl/pytorchcocotools, which agree.
TRAINVAL2017 = (
    Archive("annotations/annotations_trainval2017.zip", "annotations", "f4bbac642086de4f52a3fdda2de5fa2c"),  # 0.25 GB
    Archive("zips/val2017.zip", "val2017", "442b8da7639aecaf257c1dceb8ba8c80"),  # 0.8 GB
    Archive("zips/train2017.zip", "train2017", "cced6f7f71b7629ddf16f17bbcfab6b2"),  # 19.3 GB
)
TEST2017 = (
    Archive("annotations/image_info_test2017.zip", "annotations", "85da7065e5e600ebfee8af1edb634eb5"),
    Archive("zips/test2017.zip", "test2017", "77ad2c53ac5d0aea611d422c0938fb35"),  # 6.6 GB
)


def coco2017(root: Path, test: bool = False, keep: bool = False, base: str = COCO) -> None:
    """COCO 2017 as train2017/, val2017/ and annotations/ below `root`, with `test` also test2017/; see `fetch`."""
    fetch(TRAINVAL2017 + TEST2017 if test else TRAINVAL2017, root, base, keep)


def fetch(archives: tuple[Archive, ...], root: Path, base: str, keep: bool = False) -> None:
    """Fetch and unpack, one after the other, what is not there yet; unpacked archives are deleted unless `keep`.

    ValueError says what is in the way.
    """
    try:
        (root / ".fetched").mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".fetched" / "lock", timeout=0):
            for archive in archives:
                place = root / PurePosixPath(archive.path).name
                marker = root / ".fetched" / f"{place.stem}.done"
                if marker.exists() and (root / archive.folder).is_dir():
                    continue
                _provide(place, f"{base.rstrip('/')}/{archive.path}", archive.md5)
                _unpack(place, root, archive.folder)
                marker.touch()
                if not keep:
                    place.unlink()
    except Timeout as error:
        raise ValueError(f"root={root}: another fetch is at work there; wait for it or stop it") from error
    except OSError as error:
        raise ValueError(f"root={root}: {error}; choose a folder with room that you may write to") from error


def _provide(place: Path, url: str, md5: str) -> None:
    """The archive at `place`, whole and checked."""
    if place.exists():
        if not pooch.hashes.hash_matches(str(place), f"md5:{md5}"):
            raise ValueError(f"{place}: does not have the MD5 {md5}; remove it and run the same command again")
        return
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(url, f"md5:{md5}", fname=place.name, path=place.parent, downloader=_download)
    except requests.RequestException as error:
        remedy = f"run the same command again later, or fetch the file by hand and put it at {place}"
        raise ValueError(f"{url}: {error}; {remedy}") from error
    except ValueError as error:  # another checksum
        raise ValueError(f"{url}: {error}; run the same command again, or put a good one at {place}") from error


def _download(url: str, target: str, _: Any) -> None:
    """What pooch calls to have a file; unlike its own, this one goes on with what is there of it."""
    partial = Path(target).with_name(f"{PurePosixPath(url).name}.partial")
    furthest, fruitless = _size(partial), 0

    def hopeless(_: RetryCallState) -> bool:
        nonlocal furthest, fruitless
        fruitless = 0 if _size(partial) > furthest else fruitless + 1
        furthest = max(furthest, _size(partial))
        return fruitless >= ATTEMPTS

    def tell(state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        print(f"{partial.stem}: {error}; asking again in {state.upcoming_sleep:.0f} s", flush=True)

    passes = retry_if_exception(_may_pass)
    Retrying(retry=passes, stop=hopeless, wait=WAIT, before_sleep=tell, reraise=True)(_ask, url, partial)
    partial.replace(target)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, PASSING)


def _ask(url: str, partial: Path) -> None:
    """One request, for the bytes that are missing. That they fit those that are there, the checksum tells."""
    done = _size(partial)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:  # nothing is missing
            return
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            done = 0
        missing = int(answer.headers.get("Content-Length", 0))
        _need(partial.parent, 2 * missing + done)  # the rest, and about as much as the archive for its files
        print(f"{partial.stem}: {(done + missing) / 1e9:.2f} GB, {missing / 1e9:.2f} of it to fetch", flush=True)
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with partial.open("ab" if done else "wb") as file, Progress(*columns, transient=True) as bar:
            task = bar.add_task("", total=done + missing, completed=done)
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                bar.advance(task, len(chunk))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _need(root: Path, size: int) -> None:
    if (free := shutil.disk_usage(root).free) < size:
        raise OSError(f"needs {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free")


def _unpack(place: Path, root: Path, folder: str) -> None:
    """Move the archive's files into `root/folder`, by way of a folder aside: those there are always whole."""
    print(f"{place.name}: unpacking into {root / folder}", flush=True)
    aside = root / ".fetched" / place.stem
    shutil.rmtree(aside, ignore_errors=True)  # of an attempt that was killed
    try:
        with zipfile.ZipFile(place) as archive:
            archive.extractall(aside)
        _merge(aside / folder, root / folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _merge(source: Path, target: Path) -> None:
    """A rename where nothing is in the way; into a folder that exists, file by file."""
    if source.is_dir() and target.is_dir():
        for child in source.iterdir():
            _merge(child, target / child.name)
    else:
        source.replace(target)
