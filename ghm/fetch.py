"""Public data sets, fetched and unpacked. Interrupted at any point, the same call goes on where it was.

Below the root lie the unpacked folders; meanwhile also NAME.zip.partial and then NAME.zip, and in .fetched/
what is done. An archive that was put there by hand is taken instead of being fetched.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import requests
from requests.exceptions import ChunkedEncodingError
from rich import progress
from rich.console import Console
from rich.filesize import decimal
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential
from tenacity.wait import wait_base

COCO = "http://images.cocodataset.org"
TIMEOUT = (10, 60)  # seconds: to connect, and without a byte
CHUNK = 1 << 16  # bytes; as many are lost when a connection breaks
INFLATION = 20  # the files of an honest archive are not larger than it by more
WAIT = wait_exponential(max=30)


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


class _Passing(requests.RequestException):
    """A failure that another attempt may not meet."""


def coco2017(root: Path, test: bool = False, keep: bool = False, base: str = COCO) -> None:
    """COCO 2017 as train2017/, val2017/ and annotations/ below `root`, with `test` also test2017/; see `fetch`."""
    fetch(TRAINVAL2017 + TEST2017 if test else TRAINVAL2017, root, base, keep)


def fetch(
    archives: tuple[Archive, ...], root: Path, base: str, keep: bool = False, attempts: int = 6, wait: wait_base = WAIT
) -> None:
    """Fetch and unpack, one after the other, what is not there yet; unpacked archives are deleted unless `keep`.

    As many as `attempts` in a row may fail to bring a byte more. ValueError says what else is in the way.
    """
    try:
        with _alone(root):
            for archive in archives:
                place = root / PurePosixPath(archive.path).name
                marker = root / ".fetched" / f"{place.stem}.done"
                if marker.exists() and (root / archive.folder).is_dir():
                    continue
                if place.exists():
                    _check(place, archive.md5, str(place), "remove it and run the same command again")
                else:
                    _download(f"{base.rstrip('/')}/{archive.path}", place, archive.md5, attempts, wait)
                _unpack(place, root, archive.folder)
                os.sync()  # in a power cut the marker must not outlive the files
                marker.touch()
                if not keep:
                    place.unlink()
    except OSError as error:
        raise ValueError(f"root={root}: {error}; choose a folder with room that you may write to") from error


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Two at once would write into the same files. The lock of a process that dies falls with it."""
    (root / ".fetched").mkdir(parents=True, exist_ok=True)
    with (root / ".fetched" / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"root={root}: another fetch is at work there; wait for it or stop it") from None
        yield


def _download(url: str, place: Path, md5: str, attempts: int, wait: wait_base) -> None:
    partial, memory = place.with_name(f"{place.name}.partial"), place.parent / ".fetched" / f"{place.name}.json"
    furthest, fruitless = _size(partial), 0

    def hopeless(_: RetryCallState) -> bool:
        nonlocal furthest, fruitless
        fruitless = 0 if _size(partial) > furthest else fruitless + 1
        furthest = max(furthest, _size(partial))
        return fruitless >= attempts

    def tell(state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        print(f"{place.name}: {error}; asking again in {state.upcoming_sleep:.0f} s", flush=True)

    passing = retry_if_exception_type((_Passing, requests.ConnectionError, requests.Timeout, ChunkedEncodingError))
    try:
        Retrying(retry=passing, stop=hopeless, wait=wait, before_sleep=tell, reraise=True)(_ask, url, partial, memory)
    except requests.RequestException as error:
        remedy = f"run the same command again later, or fetch the file by hand and put it at {place}"
        raise ValueError(f"{url}: {error}; {remedy}") from error
    try:
        _check(partial, md5, url, f"it was deleted: run the same command again, or put a good one at {place}")
    except ValueError:
        partial.unlink()
        raise
    partial.replace(place)


def _ask(url: str, partial: Path, memory: Path) -> None:
    """One request, for the bytes that are missing; returns when the file is as long as the server announced."""
    (version, size), done = _recall(memory), _size(partial)
    if 0 < done == size:
        return
    headers = {"Accept-Encoding": "identity"}
    if version and 0 < done < size:
        headers |= {"Range": f"bytes={done}-", "If-Range": version}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        done, size = _begin(answer, partial, memory)
        _need(partial.parent, 2 * size - done)  # the archive, and about as much for its files
        with partial.open("ab") as file, _progress(partial.stem, done, size) as advance:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if size and _size(partial) != size:
        raise _Passing(f"the server sent {_size(partial)} of {size} bytes")


def _begin(answer: requests.Response, partial: Path, memory: Path) -> tuple[int, int]:
    """From where on the partial file is to be written, and how long it will be (0 where the server does not say).

    A beginning is kept only while the server vouches, by ETag or date, that the rest is of the same file.
    """
    named = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    if answer.status_code == 200:
        partial.unlink(missing_ok=True)  # first: an old beginning is never found beside the new version
        size = int(answer.headers.get("Content-Length", 0))
        memory.write_text(json.dumps([named, size]))
        return 0, size
    if answer.status_code in (206, 416):
        (version, size), done = _recall(memory), _size(partial)
        span = answer.headers.get("Content-Range", "")
        if span.startswith(f"bytes {done}-") and span.endswith(f"/{size}") and named in ("", version):
            return done, size
        partial.unlink(missing_ok=True)
        raise _Passing("the rest on the server does not fit the beginning here")
    kind = _Passing if answer.status_code >= 500 or answer.status_code == 429 else requests.RequestException
    raise kind(f"the server answers {answer.status_code} {answer.reason}")


def _recall(memory: Path) -> tuple[str, int]:
    """The version and the size of the file that a partial one is the beginning of."""
    try:
        version, size = json.loads(memory.read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # none, or torn by a power cut
        return "", 0
    return version, size


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _need(root: Path, size: int) -> None:
    if (free := shutil.disk_usage(root).free) < size:
        raise ValueError(f"root={root}: needs {decimal(size)}, has {decimal(free)}; make room or choose another")


def _check(file: Path, md5: str, name: str, remedy: str) -> None:
    print(f"{file.name.removesuffix('.partial')}: checking", flush=True)
    with file.open("rb") as content:
        found = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise ValueError(f"{name}: its MD5 is {found}, should be {md5}; {remedy}")


@contextlib.contextmanager
def _progress(name: str, done: int, size: int) -> Iterator[Callable[[int], None]]:
    """A moving bar on a terminal, a line for each tenth elsewhere."""
    if (console := Console()).is_terminal:
        parts = (progress.BarColumn(), progress.DownloadColumn(), progress.TransferSpeedColumn())
        with progress.Progress("{task.description}", *parts, progress.TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(name, total=size or None, completed=done)
            yield lambda count: bar.advance(task, count)
        return

    def advance(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if size and before * 10 // size < done * 10 // size:
            print(f"{name}: {done * 100 // size}% of {decimal(size)}", flush=True)

    yield advance


def _unpack(place: Path, root: Path, folder: str) -> None:
    """Move the archive's files into `root/folder`, by way of a folder aside: those there are always whole."""
    print(f"{place.name}: unpacking into {root / folder}", flush=True)
    aside = root / ".fetched" / place.stem
    shutil.rmtree(aside, ignore_errors=True)  # of an attempt that was killed
    try:
        with zipfile.ZipFile(place) as archive:
            for member in archive.infolist():
                parts, kind = PurePosixPath(member.filename).parts, stat.S_IFMT(member.external_attr >> 16)
                if parts[:1] != (folder,) or ".." in parts or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise ValueError(f"{place}: {member.filename!r} is no plain file in {folder}/; remove the archive")
            size = sum(member.file_size for member in archive.infolist())
            if size > INFLATION * _size(place):
                raise ValueError(f"{place}: would unpack to {decimal(size)}, which no data set does; remove it")
            _need(root, size)
            archive.extractall(aside)
        _merge(aside / folder, root / folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(f"{place}: not a readable zip ({error}); remove it and run the same command again") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _merge(source: Path, target: Path) -> None:
    """A rename where nothing is in the way; into a folder that exists, file by file."""
    if source.is_dir() and target.is_dir():
        for child in source.iterdir():
            _merge(child, target / child.name)
    else:
        source.replace(target)
