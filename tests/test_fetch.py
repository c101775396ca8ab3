"""Fetching against a server of our own that can be told to misbehave, request by request."""

import hashlib
import http.server
import io
import os
import random
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from tenacity import wait_none

from ghm import fetch

CHUNK = 1000
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing answers


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` with Range; `faults` holds what is done differently, a dict for each request.

    status: answer with that; send: break the connection after so many bytes; ranges: False ignores Range.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[dict] = []
        self.always: dict = {}
        self.ranges: list[str | None] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        fault = self.server.always | (self.server.faults.pop(0) if self.server.faults else {})
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        body = self.server.files.get(self.path)
        status = fault.get("status", 404 if body is None else 200)
        if status != 200:
            self.send_error(status)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and fault.get("ranges", True) else 0
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response_only(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][: fault.get("send")])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small chunks, so that small files are sent in many; few attempts, and no waiting between them."""
    for name, value in {"CHUNK": CHUNK, "ATTEMPTS": 3, "WAIT": wait_none()}.items():
        monkeypatch.setattr(fetch, name, value)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data" / "coco"


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


def packed(files):
    """The bytes of a zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def archive(body, name="val2017", folder=None):
    return fetch.Archive(f"zips/{name}.zip", folder or name, hashlib.md5(body).hexdigest())


def get(server, root, *archives, **options):
    fetch.fetch(archives, root, server if isinstance(server, str) else server.url, **options)


def tree(root):
    """What lies below, by name, without the notes in .fetched/."""
    files = {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}
    return {name: content for name, content in files.items() if not name.startswith(".fetched/")}


FILES = {"val2017/1.jpg": noise(6000), "val2017/deep/2.jpg": noise(3500, 1), "val2017/empty.txt": b""}
BODY = packed(FILES)
VAL = archive(BODY)


@pytest.fixture
def one(server):
    """A server of one good archive, `VAL`."""
    server.files["/zips/val2017.zip"] = BODY
    return server


def begin(server, root):
    """Leave a beginning of `VAL`, of its size in the answer."""
    server.faults = [{"send": 4500}, *[{"status": 503}] * 3]
    with pytest.raises(ValueError, match="503"):
        get(server, root, VAL)
    left = tree(root)["val2017.zip.partial"]
    assert 0 < len(left) <= 4500
    assert BODY.startswith(left)
    server.ranges.clear()
    return len(left)


@pytest.mark.parametrize("test", [False, True])
def test_coco_is_fetched_from_its_addresses_into_its_folders(server, root, monkeypatch, test):
    made = {"TRAINVAL2017": [], "TEST2017": []}
    files = {}
    for group, archives in made.items():
        for known in getattr(fetch, group):
            content = {f"{known.folder}/{Path(known.path).stem}.txt": known.path.encode()}
            server.files[f"/{known.path}"] = body = packed(content)
            archives.append(fetch.Archive(known.path, known.folder, hashlib.md5(body).hexdigest()))
            files |= content if test or group == "TRAINVAL2017" else {}
        monkeypatch.setattr(fetch, group, tuple(archives))
    fetch.coco2017(root, test=test, base=server.url)
    assert tree(root) == files


def test_the_known_checksums_are_those_of_the_public_archives():
    known = {Path(one.path).stem: one.md5 for one in (*fetch.TRAINVAL2017, *fetch.TEST2017)}
    assert known == {
        "annotations_trainval2017": "f4bbac642086de4f52a3fdda2de5fa2c",
        "val2017": "442b8da7639aecaf257c1dceb8ba8c80",
        "train2017": "cced6f7f71b7629ddf16f17bbcfab6b2",
        "image_info_test2017": "85da7065e5e600ebfee8af1edb634eb5",
        "test2017": "77ad2c53ac5d0aea611d422c0938fb35",
    }


def test_what_is_done_is_not_fetched_again_and_what_was_removed_is(one, root):
    get(one, root, VAL)
    get(NOWHERE, root, VAL)
    assert tree(root) == FILES
    for file in (root / "val2017").rglob("*.*"):
        file.unlink()
    (root / "val2017" / "deep").rmdir()
    (root / "val2017").rmdir()
    get(one, root, VAL, keep=True)
    assert tree(root) == FILES | {"val2017.zip": BODY}


def test_an_archive_put_there_by_hand_is_taken_and_a_wrong_one_named_and_left(root):
    root.mkdir(parents=True)
    place = root / "val2017.zip"
    place.write_bytes(b"another")
    with pytest.raises(ValueError, match=rf"^{place}: does not have the MD5 {VAL.md5}; remove it"):
        get(NOWHERE, root, VAL)
    assert place.read_bytes() == b"another"
    place.write_bytes(BODY)
    get(NOWHERE, root, VAL)
    assert tree(root) == FILES


def test_two_archives_share_a_folder_and_files_from_before_stay(server, root):
    first, second = packed({"annotations/a.json": b"new"}), packed({"annotations/b.json": b"b"})
    server.files = {"/zips/a.zip": first, "/zips/b.zip": second}
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "own.json").write_bytes(b"own")
    (root / "annotations" / "a.json").write_bytes(b"old")
    get(server, root, archive(first, "a", "annotations"), archive(second, "b", "annotations"))
    names = {"a.json": b"new", "b.json": b"b", "own.json": b"own"}
    assert tree(root) == {f"annotations/{name}": content for name, content in names.items()}


def test_a_connection_that_breaks_is_resumed_where_it_broke(one, root):
    one.faults = [{"send": 4500}, {"status": 503}, {"send": 2500}]
    get(one, root, VAL)
    assert tree(root) == FILES
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in one.ranges[1:]]
    assert one.ranges[0] is None
    assert starts[0] == starts[1] < starts[2]


def test_the_next_command_asks_only_for_the_rest(one, root):
    done = begin(one, root)
    get(one, root, VAL)
    assert one.ranges == [f"bytes={done}-"]
    assert tree(root) == FILES


def test_ctrl_c_leaves_the_beginning(one, root, monkeypatch):
    def interrupt(self, task, count):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch.Progress, "advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        get(one, root, VAL)
    assert tree(root) == {"val2017.zip.partial": BODY[:CHUNK]}


def test_a_whole_file_that_was_not_yet_checked_is_not_fetched_again(one, root):
    root.mkdir(parents=True)
    (root / "val2017.zip.partial").write_bytes(BODY)
    get(one, root, VAL)
    assert one.ranges == [f"bytes={len(BODY)}-"]
    assert tree(root) == FILES


def test_a_server_that_knows_no_ranges_sends_it_all_again(one, root):
    begin(one, root)
    one.always = {"ranges": False}
    get(one, root, VAL)
    assert tree(root) == FILES


def test_a_beginning_of_another_file_is_dropped_by_its_checksum(one, root):
    root.mkdir(parents=True)
    (root / "val2017.zip.partial").write_bytes(noise(3000, 5))
    with pytest.raises(ValueError, match=r"zips/val2017\.zip: MD5 hash .*; run the same command again"):
        get(one, root, VAL)
    assert tree(root) == {}
    get(one, root, VAL)
    assert tree(root) == FILES


@pytest.mark.parametrize("body", [BODY[:-1] + b"x", b"<html>log in</html>"])
def test_wrong_bytes_are_deleted_and_named(one, root, body):
    one.files["/zips/val2017.zip"] = body
    with pytest.raises(ValueError, match=rf"{hashlib.md5(body).hexdigest()}.*put a good one at {root}/val2017.zip"):
        get(one, root, VAL)
    assert tree(root) == {}


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (403, 1), (503, 3), (429, 3)])
def test_what_does_not_pass_ends_in_one_line_with_a_remedy(one, root, status, asked):
    one.always = {"status": status}
    with pytest.raises(ValueError, match=rf"^{one.url}/zips/val2017.zip: {status}.*put it at {root}/val2017.zip"):
        get(one, root, VAL)
    assert len(one.ranges) == asked


def test_without_a_network_the_line_says_so(root):
    with pytest.raises(ValueError, match=rf"^{NOWHERE}/zips/val2017.zip: .*refused.*run the same command again later"):
        get(NOWHERE, root, VAL)


@pytest.mark.parametrize("killed", ["extractall", "touch", "unlink"])
def test_killed_while_unpacking_goes_on_without_fetching_again(one, root, monkeypatch, killed):
    def kill(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile if killed == "extractall" else Path, killed, kill)
        with pytest.raises(KeyboardInterrupt):
            get(one, root, VAL)
    (root / ".fetched" / "val2017" / "val2017").mkdir(parents=True, exist_ok=True)
    (root / ".fetched" / "val2017" / "val2017" / "half.jpg").write_bytes(b"of an attempt before")
    get(NOWHERE, root, VAL)
    assert {name: content for name, content in tree(root).items() if name != "val2017.zip"} == FILES


def test_the_archive_and_its_files_must_fit_before_anything_is_fetched(one, root, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * len(BODY) - 1))
    with pytest.raises(ValueError, match=rf"^root={root}: needs 0\.00 GB, .*; choose a folder with room"):
        get(one, root, VAL)
    assert tree(root) == {}


def test_a_root_that_is_a_file_is_named(one, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rf"^root={tmp_path}/file: .*choose a folder"):
        get(one, tmp_path / "file", VAL)


def test_two_at_once_in_a_folder_are_refused(one, root):
    (root / ".fetched").mkdir(parents=True)
    with FileLock(root / ".fetched" / "lock"), pytest.raises(ValueError, match="another fetch is at work"):
        get(one, root, VAL)


def test_names_that_point_outside_stay_below_the_root(server, root):
    body = packed({"val2017/1.jpg": b"1", "../outside.txt": b"x", "val2017/../../up.txt": b"y"})
    server.files["/zips/val2017.zip"] = body
    get(server, root, archive(body))
    assert not {path.name for path in root.parent.iterdir()} & {"outside.txt", "up.txt"}
    assert os.listdir(root / "val2017")
