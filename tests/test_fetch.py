"""Fetching against a server of our own that can be told to misbehave, request by request."""

import dataclasses
import errno
import fcntl
import hashlib
import http.server
import io
import json
import os
import random
import stat
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from tenacity import wait_none

from ghm import fetch

CHUNK = 1000
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing answers


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` with Range, If-Range and ETag; `faults` holds what is done differently, a dict for each request.

    status: answer with that; send: break the connection after so many bytes; lie: announce so many bytes more;
    ranges: False ignores Range; trusting: ignores If-Range; headers: replaces headers, None drops one; stall: seconds.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[dict] = []
        self.always: dict = {}
        self.asked: list[SimpleNamespace] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def ranges(self):
        return [request.range for request in self.asked]

    @property
    def sent(self):
        return sum(request.sent for request in self.asked)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        fault = self.server.always | (self.server.faults.pop(0) if self.server.faults else {})
        asked = SimpleNamespace(range=self.headers["Range"], encoding=self.headers["Accept-Encoding"], sent=0)
        self.server.asked.append(asked)
        time.sleep(fault.get("stall", 0))
        body = self.server.files.get(self.path)
        status = fault.get("status", 404 if body is None else 200)
        if status != 200:
            self.send_error(status)
            return
        tag, start = f'"{hashlib.md5(body).hexdigest()}"', 0
        headers = {"ETag": tag, "Last-Modified": "Mon, 01 Jan 2018 00:00:00 GMT"}
        fits = fault.get("trusting") or self.headers["If-Range"] in headers.values()
        if asked.range and fault.get("ranges", True) and fits:
            start, status = int(asked.range.removeprefix("bytes=").removesuffix("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            if start >= len(body):
                self.send_error(416)
                return
        headers["Content-Length"] = str(len(body) - start + fault.get("lie", 0))
        self.send_response_only(status)
        for name, value in (headers | fault.get("headers", {})).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        asked.sent = self.wfile.write(body[start:][: fault.get("send")])

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
    """Small chunks, so that small files are sent in many; no waiting for disks; no terminal, whatever runs this."""
    monkeypatch.setattr(fetch, "CHUNK", CHUNK)
    monkeypatch.setattr(os, "sync", lambda: None)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data" / "coco"


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


def packed(files, compression=zipfile.ZIP_DEFLATED):
    """The bytes of a zip; names may be ZipInfo."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def archive(body, name="val2017"):
    return fetch.Archive(f"zips/{name}.zip", name, hashlib.md5(body).hexdigest())


def get(server, root, *archives, **options):
    base = server if isinstance(server, str) else server.url
    fetch.fetch(archives, root, base, **{"wait": wait_none(), "attempts": 3} | options)


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


def begin(server, root, **fault):
    """Leave the first 4000 bytes of `VAL`."""
    server.faults = [{"send": 4 * CHUNK} | fault, {"status": 503}]
    with pytest.raises(ValueError, match="503"):
        get(server, root, VAL, attempts=1)
    assert tree(root) == {"val2017.zip.partial": BODY[: 4 * CHUNK]}
    server.asked.clear()


# What comes of it


@pytest.mark.parametrize("test", [False, True])
def test_coco_is_fetched_from_its_addresses_into_its_folders(server, root, monkeypatch, test):
    contents = {
        "/annotations/annotations_trainval2017.zip": {"annotations/instances_val2017.json": noise(300)},
        "/annotations/image_info_test2017.zip": {"annotations/image_info_test2017.json": noise(200)},
        "/zips/train2017.zip": {"train2017/1.jpg": noise(9000)},
        "/zips/val2017.zip": {"val2017/2.jpg": noise(800)},
        "/zips/test2017.zip": {"test2017/3.jpg": noise(700)},
    }
    server.files = {f"/mirror{path}": packed(files) for path, files in contents.items()}
    for table in ("TRAINVAL2017", "TEST2017"):
        ours = [
            dataclasses.replace(one, md5=hashlib.md5(server.files[f"/mirror/{one.path}"]).hexdigest())
            for one in getattr(fetch, table)
        ]
        monkeypatch.setattr(fetch, table, tuple(ours))
    fetch.coco2017(root, test, base=f"{server.url}/mirror/")
    wanted = [files for path, files in contents.items() if test or "test" not in path]
    assert tree(root) == {name: content for files in wanted for name, content in files.items()}
    assert len(server.asked) == len(wanted)
    for folder in root.iterdir():
        folder.rename(root.parent / folder.name)
    fetch.coco2017(root, test, keep=True, base=f"{server.url}/mirror")
    kept = {Path(path).name: server.files[f"/mirror{path}"] for path in contents if test or "test" not in path}
    assert {name: content for name, content in tree(root).items() if name.endswith(".zip")} == kept


def test_the_known_checksums_are_those_of_the_public_archives():
    assert {Path(one.path).name: one.md5 for one in fetch.TRAINVAL2017 + fetch.TEST2017} == {
        "annotations_trainval2017.zip": "f4bbac642086de4f52a3fdda2de5fa2c",
        "val2017.zip": "442b8da7639aecaf257c1dceb8ba8c80",
        "train2017.zip": "cced6f7f71b7629ddf16f17bbcfab6b2",
        "image_info_test2017.zip": "85da7065e5e600ebfee8af1edb634eb5",
        "test2017.zip": "77ad2c53ac5d0aea611d422c0938fb35",
    }


def test_what_is_done_is_not_fetched_again(one, root):
    get(one, root, VAL)
    assert tree(root) == FILES
    get(one, root, VAL)
    get(NOWHERE, root, VAL)
    assert len(one.asked) == 1


def test_what_was_removed_is_fetched_again(one, root):
    get(one, root, VAL)
    (root / "val2017").rename(root / "elsewhere")
    get(one, root, VAL)
    assert {name for name in tree(root) if name.startswith("val2017/")} == set(FILES)


def test_the_archive_is_kept_on_request(one, root):
    get(one, root, VAL, keep=True)
    assert tree(root) == FILES | {"val2017.zip": BODY}


def test_an_archive_put_there_by_hand_is_taken(root):
    root.mkdir(parents=True)
    (root / "val2017.zip").write_bytes(BODY)
    get(NOWHERE, root, VAL)
    assert tree(root) == FILES


def test_files_from_before_stay_beside_those_of_the_archive(one, root):
    (root / "val2017" / "deep").mkdir(parents=True)
    (root / "val2017" / "1.jpg").write_bytes(b"half")
    (root / "val2017" / "deep" / "mine.jpg").write_bytes(b"mine")
    get(one, root, VAL)
    assert tree(root) == FILES | {"val2017/deep/mine.jpg": b"mine"}


# Going on


def test_a_connection_that_breaks_is_resumed_where_it_broke(one, root):
    # More often than `attempts`: each brings the end nearer.
    one.faults = [{"send": 1 * CHUNK} for _ in range(7)]
    get(one, root, VAL, attempts=2)
    assert tree(root) == FILES
    assert one.ranges == [None, *(f"bytes={done * CHUNK}-" for done in range(1, 8))]
    assert one.sent == len(BODY)


def test_the_next_call_asks_only_for_the_rest(one, root):
    begin(one, root)
    get(one, root, VAL, attempts=1)
    assert tree(root) == FILES
    assert one.ranges == ["bytes=4000-"]
    assert one.sent == len(BODY) - 4000


def test_only_what_comes_new_counts_as_getting_on(one, root):
    begin(one, root)
    one.always = {"status": 503}
    with pytest.raises(ValueError, match="503"):
        get(one, root, VAL, attempts=3)
    assert len(one.asked) == 3


def test_a_piece_of_the_rest_is_taken_as_a_piece(one, root):
    begin(one, root)
    one.faults = [{"lie": -2000}]
    get(one, root, VAL)
    assert tree(root) == FILES
    assert one.ranges == ["bytes=4000-", f"bytes={len(BODY) - 2000}-"]


def test_the_server_is_asked_for_the_file_as_it_is(one, root):
    get(one, root, VAL)
    assert [request.encoding for request in one.asked] == ["identity"]


def test_ctrl_c_leaves_the_beginning_for_the_next_call(one, root, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "print", interrupt, raising=False)  # at the first tenth
        with pytest.raises(KeyboardInterrupt):
            get(one, root, VAL)
    done = len(tree(root)["val2017.zip.partial"])
    assert 0 < done < len(BODY)
    get(one, root, VAL)
    assert tree(root) == FILES
    assert one.ranges == [None, f"bytes={done}-"]


def test_a_whole_file_that_was_not_yet_checked_is_not_fetched_again(one, root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_check", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            get(one, root, VAL)
    get(one, root, VAL)
    assert tree(root) == FILES
    assert len(one.asked) == 1


@pytest.mark.parametrize("killed", ["extractall", "replace", "sync", "touch", "unlink"])
def test_killed_while_unpacking_goes_on_without_fetching_again(one, root, monkeypatch, killed):
    two = packed(more := {"val2017/3.jpg": noise(500, 2), "val2017/deep/4.jpg": noise(500, 3)})
    other = dataclasses.replace(archive(two, "more2017"), folder="val2017")
    one.files["/zips/more2017.zip"] = two
    get(one, root, VAL)
    place = {"extractall": zipfile.ZipFile, "sync": os}.get(killed, Path)
    original, calls = getattr(place, killed), []

    def die(*arguments, **options):
        calls.append(arguments)
        if killed == "replace" and len(calls) < 3:  # of the partial file, and of one of two files
            return original(*arguments, **options)
        if killed == "unlink" and not (root / ".fetched" / "more2017.done").exists():
            return original(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, killed, die)
        with pytest.raises(KeyboardInterrupt):
            get(one, root, VAL, other)
    marked = (root / ".fetched" / "more2017.done").exists()
    assert marked == (killed == "unlink")  # last, so that all before it can happen again
    get(one, root, VAL, other, keep=True)
    assert tree(root) == FILES | more | {"more2017.zip": two}
    assert len(one.asked) == 2


def test_remains_of_a_killed_unpacking_do_not_come_along(one, root):
    aside = root / ".fetched" / "val2017" / "val2017"
    aside.mkdir(parents=True)
    (aside / "torn.jpg").write_bytes(b"torn")
    get(one, root, VAL)
    assert tree(root) == FILES
    assert not aside.parent.exists()


# Starting over


@pytest.mark.parametrize(
    "fault",
    [
        {"ranges": False},
        {"trusting": True, "headers": {"ETag": '"of another file"'}},
        {"headers": {"Content-Range": f"bytes 3000-{len(BODY) - 1}/{len(BODY)}"}},
        {"headers": {"Content-Range": f"bytes 4000-{len(BODY)}/{len(BODY) + 1}"}},
        {"headers": {"Content-Range": None}},
        {"status": 416},
    ],
    ids=str,
)
def test_a_server_without_a_fitting_rest_is_asked_for_all(one, root, fault):
    begin(one, root)
    one.faults = [fault]
    get(one, root, VAL)
    assert tree(root) == FILES
    assert one.ranges == (["bytes=4000-"] if fault.get("ranges") is False else ["bytes=4000-", None])


@pytest.mark.parametrize("trusting", [False, True])
def test_a_file_that_changed_is_not_glued_to_its_old_half(one, root, trusting):
    begin(one, root)
    new = packed(files := {"val2017/1.jpg": noise(9000, 5)}, zipfile.ZIP_STORED)
    one.files["/zips/val2017.zip"] = new
    one.faults = [{"trusting": trusting}]
    get(one, root, archive(new))
    assert tree(root) == files
    assert one.ranges == (["bytes=4000-", None] if trusting else ["bytes=4000-"])


@pytest.mark.parametrize(
    ("headers", "resumed"),
    [
        ({"ETag": None}, True),  # by date
        ({"Last-Modified": None}, True),
        ({"ETag": None, "Last-Modified": None}, False),
        ({"Content-Length": None}, False),
    ],
    ids=str,
)
def test_a_half_without_a_name_or_length_is_not_resumed(one, root, headers, resumed):
    if headers == {"Content-Length": None}:  # its end looks like any other
        (root / ".fetched").mkdir(parents=True)
        (root / ".fetched" / "val2017.zip.json").write_text(json.dumps(["tag", 0]))
        (root / "val2017.zip.partial").write_bytes(BODY[:4000])
    else:
        begin(one, root, headers=headers)
    one.always = {"headers": headers}
    get(one, root, VAL)
    assert tree(root) == FILES
    assert one.ranges == (["bytes=4000-"] if resumed else [None])


def test_a_rest_that_does_not_repeat_its_date_is_taken(one, root):
    begin(one, root, headers={"ETag": None})
    one.faults = [{"headers": {"ETag": None, "Last-Modified": None}}]
    get(one, root, VAL)
    assert tree(root) == FILES
    assert one.ranges == ["bytes=4000-"]


@pytest.mark.parametrize("notes", [None, "", '["ta'])
def test_a_half_without_readable_notes_is_not_resumed(one, root, notes):
    begin(one, root)
    path = root / ".fetched" / "val2017.zip.json"
    path.unlink() if notes is None else path.write_text(notes)
    get(one, root, VAL)
    assert tree(root) == FILES
    assert one.ranges == [None]


def test_more_than_the_server_announced_is_dropped(one, root):
    begin(one, root)
    (root / "val2017.zip.partial").write_bytes(BODY + b"more")
    get(one, root, VAL)
    assert tree(root) == FILES
    assert one.ranges == [None]


def test_an_old_half_is_gone_before_the_new_version_is_noted(one, root, monkeypatch):
    begin(one, root)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        one.faults = [{"ranges": False}]
        with pytest.raises(KeyboardInterrupt):
            get(one, root, VAL)
    assert tree(root) == {}


# Failures that pass, and others


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}, {"status": 429}, {"send": 0}, {"lie": 5}])
def test_what_may_pass_is_tried_again(one, root, fault, capsys):
    one.faults = [fault, fault]
    get(one, root, VAL)
    assert tree(root) == FILES
    assert capsys.readouterr().out.count("; asking again in 0 s\n") == 2


def test_a_silent_server_is_asked_again(one, root, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT", (5, 0.1))
    one.faults = [{"stall": 0.4}]
    get(one, root, VAL)
    assert tree(root) == FILES
    assert len(one.asked) == 2


@pytest.mark.parametrize(
    ("fault", "message", "number"),
    [
        ({"status": 500}, "the server answers 500 Internal Server Error", 3),
        ({"status": 404}, "the server answers 404 Not Found", 1),
        ({"status": 403}, "the server answers 403 Forbidden", 1),
        ({"send": 0}, "IncompleteRead", 3),
    ],
)
def test_what_does_not_pass_ends_in_one_line_with_a_remedy(one, root, fault, message, number):
    one.always = fault
    with pytest.raises(ValueError, match=f"^{one.url}/zips/val2017.zip: .*{message}") as refusal:
        get(one, root, VAL)
    assert f"fetch the file by hand and put it at {root / 'val2017.zip'}" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(one.asked) == number


def test_a_server_that_breaks_off_at_the_same_place_is_given_up(one, root):
    one.always = {"ranges": False, "send": 4 * CHUNK}
    with pytest.raises(ValueError, match="run the same command again later"):
        get(one, root, VAL, attempts=3)
    assert len(one.asked) == 4  # the first one brought something


def test_a_server_that_announces_more_than_it_has_is_given_up(one, root):
    one.always = {"lie": 1000}
    with pytest.raises(ValueError, match="run the same command again later"):
        get(one, root, VAL, attempts=3)
    assert len(one.asked) <= 6


def test_without_a_network_the_line_says_so(root):
    with pytest.raises(
        ValueError, match=f"^{NOWHERE}/zips/val2017.zip: .*; run the same command again later, or fetch"
    ):
        get(NOWHERE, root, VAL)
    assert tree(root) == {}


def test_a_base_that_is_no_address_is_named(root):
    with pytest.raises(ValueError, match=r"^over there/zips/val2017.zip: "):
        get("over there", root, VAL)


@pytest.mark.parametrize("body", [noise(len(BODY)), BODY[:-1] + b"x", BODY[:-100], b"<html>log in</html>", b""])
def test_wrong_bytes_are_deleted_and_named(one, root, body):
    one.files["/zips/val2017.zip"] = body
    found = hashlib.md5(body).hexdigest()
    with pytest.raises(
        ValueError, match=f"^{one.url}/zips/val2017.zip: .*{found}, should be {VAL.md5}; it was deleted"
    ):
        get(one, root, VAL)
    assert tree(root) == {}
    one.files["/zips/val2017.zip"] = BODY
    get(one, root, VAL)
    assert tree(root) == FILES
    assert one.ranges == [None, None]


def test_a_wrong_archive_put_there_by_hand_is_named_and_left(root):
    root.mkdir(parents=True)
    (root / "val2017.zip").write_bytes(b"wrong")
    with pytest.raises(
        ValueError, match=f"^{root}/val2017.zip: its MD5 is .*; remove it and run the same command again"
    ):
        get(NOWHERE, root, VAL)
    assert tree(root) == {"val2017.zip": b"wrong"}


def test_the_archive_appears_under_its_name_only_when_whole_and_on_disk(one, root, monkeypatch):
    synced, replace = [], Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))

    def watch(self, target):
        if self.name == "val2017.zip.partial":
            assert self.read_bytes() == BODY
            assert synced[-1] == len(BODY)
            synced.append("renamed")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watch)
    get(one, root, VAL)
    assert synced[-1] == "renamed"


# Room


@pytest.fixture
def free(monkeypatch):
    def set_to(size):
        monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=size))

    return set_to


def test_the_archive_and_its_files_must_fit_before_anything_is_fetched(one, root, free):
    free(2 * len(BODY) - 1)
    with pytest.raises(ValueError, match=f"^root={root}: needs 19.. kB, has 19.. kB; make room or choose another"):
        get(one, root, VAL)
    assert tree(root) == {}
    free(2 * len(BODY))
    get(one, root, VAL)
    assert tree(root) == FILES


def test_what_was_fetched_before_needs_no_room_again(one, root, free):
    begin(one, root)
    free(2 * len(BODY) - 4001)
    with pytest.raises(ValueError, match="make room"):
        get(one, root, VAL)
    assert tree(root) == {"val2017.zip.partial": BODY[:4000]}
    free(2 * len(BODY) - 4000)
    get(one, root, VAL)
    assert tree(root) == FILES


def test_the_files_must_fit_before_any_is_unpacked(root, free):
    root.mkdir(parents=True)
    (root / "val2017.zip").write_bytes(BODY)
    free(sum(map(len, FILES.values())) - 1)
    with pytest.raises(ValueError, match="make room"):
        get(NOWHERE, root, VAL)
    assert tree(root) == {"val2017.zip": BODY}
    free(sum(map(len, FILES.values())))
    get(NOWHERE, root, VAL)
    assert tree(root) == FILES


def test_a_root_that_is_a_file_is_named(one, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"^root={tmp_path}/file: .*; choose a folder"):
        get(one, tmp_path / "file", VAL)


def test_a_disk_that_is_full_after_all_is_named(one, root, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=f"^root={root}: .*No space left on device; choose a folder with room"):
        get(one, root, VAL)


def test_two_at_once_in_a_folder_are_refused(one, root):
    (root / ".fetched").mkdir(parents=True)
    with (root / ".fetched" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=f"^root={root}: another fetch is at work there; "):
            get(one, root, VAL)
    get(one, root, VAL)
    assert tree(root) == FILES


# Archives that are refused


def special(name, kind):
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "val2017/../../evil",
        "val2017/../evil",
        "val2017/..",
        "/val2017/evil",
        "//val2017/evil",
        "./../evil",
        "evil",
        "other/evil",
        ".fetched/train2017.done",
        "val2017x/evil",
        special("val2017/link", stat.S_IFLNK),
        special("val2017/pipe", stat.S_IFIFO),
        special("val2017/device", stat.S_IFCHR),
    ],
    ids=lambda name: getattr(name, "filename", name),
)
def test_members_that_are_no_plain_files_in_the_folder_are_refused(server, root, tmp_path, name):
    body = packed({"val2017/good.jpg": b"good", name: str(tmp_path).encode()})
    server.files["/zips/val2017.zip"] = body
    with pytest.raises(ValueError, match=f"^{root}/val2017.zip: '.*' is no plain file in val2017/") as refusal:
        get(server, root, archive(body))
    assert repr(getattr(name, "filename", name)) in str(refusal.value)
    assert tree(tmp_path) == {"data/coco/val2017.zip": body} | {
        name: content for name, content in tree(tmp_path).items() if "/.fetched/" in name
    }
    assert not list(root.glob("val2017")) + list(root.glob(".fetched/*.done"))


def test_a_folder_of_its_own_mode_is_no_special_file(server, root):
    folder = special("val2017/deep/", stat.S_IFDIR)
    body = packed({special("val2017/", stat.S_IFDIR): b"", folder: b"", "val2017/deep/1.jpg": b"1"})
    server.files["/zips/val2017.zip"] = body
    get(server, root, archive(body))
    assert tree(root) == {"val2017/deep/1.jpg": b"1"}


def test_a_bomb_is_refused(server, root):
    body = packed({"val2017/1.jpg": noise(100), "val2017/bomb": bytes(1_000_000)})
    server.files["/zips/val2017.zip"] = body
    with pytest.raises(ValueError, match=f"^{root}/val2017.zip: would unpack to 1.0 MB"):
        get(server, root, archive(body))
    assert tree(root) == {"val2017.zip": body}


def test_text_that_packs_well_is_no_bomb(server, root):
    files = {"val2017/1.json": noise(1000) * 12}
    server.files["/zips/val2017.zip"] = body = packed(files)
    assert 8 * len(body) < 12_000
    get(server, root, archive(body))
    assert tree(root) == files


def test_a_bomb_that_lies_about_its_size_is_cut_off(server, root):
    body = packed({"val2017/bomb": bytes(10_000_000)})
    body = body.replace((10_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    server.files["/zips/val2017.zip"] = body
    with pytest.raises(ValueError, match=f"^{root}/val2017.zip: not a readable zip"):
        get(server, root, archive(body))
    assert tree(root) == {"val2017.zip": body}


TEXT = packed({"val2017/1.json": b"".join(b"%d," % number for number in range(3000))})


@pytest.mark.parametrize(
    "body",
    [
        b"no zip",
        BODY[:-30],
        BODY.replace(noise(3500, 1)[:50], bytes(50)),  # its CRC tells
        TEXT[:60] + b"\xff" * 50 + TEXT[110:],  # cannot be unpacked
    ],
    ids=["text", "cut", "changed", "garbled"],
)
def test_a_damaged_zip_leaves_nothing_half_unpacked(server, root, body):
    server.files["/zips/val2017.zip"] = body
    with pytest.raises(ValueError, match=f"^{root}/val2017.zip: not a readable zip .*; remove it"):
        get(server, root, archive(body))
    assert tree(root) == {"val2017.zip": body}
    assert {path.name for path in (root / ".fetched").iterdir()} == {"lock", "val2017.zip.json"}


# What is said


def test_off_a_terminal_each_tenth_is_a_line(one, root, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "CHUNK", 100)
    get(one, root, VAL)
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if line.startswith("val2017.zip: ") and "% of 9.9 kB" in line]
    assert len(said) == 10
    assert said[-1].startswith("val2017.zip: 100%")
    assert "val2017.zip: checking" in lines
    assert f"val2017.zip: unpacking into {root}/val2017" in lines


def test_a_resumed_file_counts_from_where_it_broke(one, root, capsys):
    begin(one, root)
    capsys.readouterr()
    get(one, root, VAL)
    said = [line for line in capsys.readouterr().out.splitlines() if "% of" in line]
    assert len(said) == 6
    assert said[0].startswith("val2017.zip: 50%")


def test_on_a_terminal_there_is_a_bar(one, root, monkeypatch, capsys):
    begin(one, root)
    capsys.readouterr()
    screen = io.StringIO()
    monkeypatch.setattr(fetch, "Console", lambda: Console(file=screen, force_terminal=True, width=100))
    get(one, root, VAL)
    assert "val2017.zip" in screen.getvalue()
    assert "9.9/9.9 kB" in screen.getvalue()
    assert "% of" not in capsys.readouterr().out
