"""The page of ``bsq-jax demo``, with a real server. Oracles: `Codec`, Pillow, lines by hand."""

import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from email.message import Message

import numpy as np
import pytest
from PIL import Image
from small_codec import make_codec, picture
from video_files import write_video

from bsq_jax import cli
from bsq_jax.cli.demo_page.equal_size import at_most
from bsq_jax.cli.demo_page.guard import HEADER, Guard
from bsq_jax.cli.demo_page.opened_file import MOST_CLIP_PIXELS, MOST_FRAMES, MOST_PIXELS, open_file
from bsq_jax.cli.demo_page.server import DemoServer, bound
from bsq_jax.cli.demo_page.shelf import Gone, Shelf
from bsq_jax.cli.demo_page.workbench import MOST_UPLOAD, Workbench
from bsq_jax.core.errors import UserError

HEIGHT, WIDTH = 40, 56
OWN = {HEADER: "1"}


def png(frame):
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


def animation(count, height=24, width=40):
    file = io.BytesIO()
    frames = [Image.fromarray(frame) for frame in picture(height, width, count)]
    more = {"save_all": True, "append_images": frames[1:], "duration": 80, "lossless": True}
    frames[0].save(file, "WEBP", **more)
    return file.getvalue()


@pytest.fixture(scope="module")
def codec():
    return make_codec(min_bits=4)


@pytest.fixture(scope="module")
def server(codec):
    with DemoServer(bound("127.0.0.1", 0), "127.0.0.1", Workbench(codec)) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def opened(server):
    return asked(server, "/open?name=a%0Ab.png", png(picture(HEIGHT, WIDTH)[0]))


def request(server, method, path, body=None, headers=None):
    """Status, media type and content."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read()
    finally:
        connection.close()


def asked(server, path, body):
    """The answer to a request of the page."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, kind, content = request(server, "POST", path, body, OWN)
    assert (status, kind) == (200, "application/json"), content
    return json.loads(content)


def refused(server, method, path, body=None, headers=None):
    """Status and the line of an error."""
    status, kind, content = request(server, method, path, body, headers)
    assert kind == "application/json"
    (line,) = json.loads(content).values()
    assert line == line.strip() != ""
    assert "\n" not in line
    assert "Traceback" not in line
    return status, line


def pixels(server, name, frame=0):
    status, kind, content = request(server, "GET", f"/pictures/{name}/{frame}.png")
    assert (status, kind) == (200, "image/png")
    with Image.open(io.BytesIO(content)) as made:
        return np.asarray(made)


def test_the_page_needs_nothing_from_elsewhere(server):
    _, kind, page = request(server, "GET", "/")
    assert kind == "text/html; charset=utf-8"
    named = set(re.findall(rb'(?:src|href)="([^"]+)"', page))
    assert {b"demo.css", b"main.js"} <= named
    scripts = {b"api.js", b"token.js", b"viewer.js"}
    for name in named | scripts:
        status, _, content = request(server, "GET", f"/{name.decode()}")
        assert status == 200
        outside = re.findall(rb"https?://[^\"' ]+", content)
        assert set(outside) <= {b"http://www.w3.org/2000/svg"}
        imported = set(re.findall(rb'from "\./([^"]+)"', content))
        assert imported <= scripts


def test_photographs_that_come_along(server):
    about = json.loads(request(server, "GET", "/about")[2])
    assert about["bits"] == [4, 5, 6]
    assert about["prior"] is True
    assert {"chelsea.png", "coffee.png", "china.jpg"} <= set(about["samples"])
    _, kind, small = request(server, "GET", "/samples/coffee.png")
    assert kind == "image/jpeg"
    assert max(Image.open(io.BytesIO(small)).size) <= 144
    found = asked(server, "/sample", {"name": "coffee.png"})
    assert (found["height"], found["width"], found["frames"]) == (400, 600, 1)
    assert refused(server, "GET", "/samples/other.png")[0] == 404
    body = json.dumps({"name": "other.png"})
    assert refused(server, "POST", "/sample", body, OWN)[0] == 400


@pytest.mark.parametrize("bits", [4, 6])
def test_size_and_reconstruction_are_those_of_the_codec(server, codec, opened, bits):
    frames = picture(HEIGHT, WIDTH)
    assert opened["name"] == "ab.png"
    np.testing.assert_array_equal(pixels(server, opened["picture"]), frames[0])
    found = asked(server, "/encode", {"id": opened["id"], "bits": bits})
    data = codec.encode(frames, bits=bits)
    assert found["bytes"] == len(data)
    made = codec.decode(data).frames[0]
    np.testing.assert_array_equal(pixels(server, found["picture"]), made)
    # What is beside the payload: header, checksums and the end of the arithmetic coder.
    assert 0 < len(data) - found["map"]["total"] / 8 < 64
    assert found["map"]["highest"] >= found["map"]["mean"] > 0
    shown = pixels(server, found["map"]["picture"])
    assert shown.shape == made.shape
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 4


def test_the_table_has_files_that_are_no_larger(server, codec, opened):
    original = picture(HEIGHT, WIDTH)
    fields = {"id": opened["id"], "bits": 6}
    lines = {
        name: asked(server, "/compare", {**fields, "codec": name}) for name in opened["codecs"]
    }
    own = lines.pop("bsq")
    assert own["bytes"] == len(codec.encode(original))
    assert own["bits_a_pixel"] == pytest.approx(8 * own["bytes"] / (HEIGHT * WIDTH))
    assert {"jpeg", "webp"} <= set(lines)
    for line in (own, *lines.values()):
        assert line["fits"] == (line["bytes"] <= own["bytes"])
        error = np.mean((pixels(server, line["picture"]).astype(float) - original[0]) ** 2)
        assert line["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
        assert 0 < line["lpips"] < 2
    status, line = refused(server, "POST", "/compare", json.dumps({**fields, "codec": "x"}), OWN)
    assert (status, line) == (400, "there is no codec x to compare with")


def test_the_best_quality_that_fits():
    frames = picture(HEIGHT, WIDTH)
    sizes = {}
    for quality in (30, 31, 95):
        file = io.BytesIO()
        image = Image.fromarray(frames[0])
        image.save(file, "JPEG", quality=quality, optimize=True, progressive=True)
        sizes[quality] = len(file.getvalue())
    found = at_most("jpeg", frames, None, sizes[30])
    assert found.fits
    assert found.coded.file_bytes == sizes[30]
    assert at_most("jpeg", frames, None, 10**6).setting == "quality 95"
    least = at_most("jpeg", frames, None, 10)
    assert (least.fits, least.setting) == (False, "quality 1")


def test_a_flip_changes_what_is_around_its_token(server, opened):
    fields = {"id": opened["id"], "bits": 6, "frame": 0}
    before = pixels(server, asked(server, "/encode", {"id": opened["id"], "bits": 6})["picture"])
    token = asked(server, "/token", {**fields, "x": 30, "y": 20})
    assert len(token["bits"]) == len(token["costs"]) == 6
    assert token["cost"] == pytest.approx(sum(token["costs"]))
    top, left, bottom, right = token["box"]
    assert top <= 20 < bottom
    assert left <= 30 < right
    place = {"row": token["row"], "column": token["column"]}
    flipped = asked(server, "/flip", {**fields, **place, "flips": [0, 3]})
    differs = (pixels(server, flipped["picture"]) != before).any(-1)
    rows, columns = np.nonzero(differs)
    assert flipped["pixels"] == len(rows) > 0
    assert flipped["box"] == [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    # Its tile, of two tokens a side.
    assert rows.min() >= top - 8
    assert rows.max() < bottom + 8
    assert columns.min() >= left - 8
    assert columns.max() < right + 8
    again = asked(server, "/flip", {**fields, **place, "flips": []})
    assert (again["pixels"], again["box"]) == (0, None)
    for wrong in ({"flips": [6]}, {"row": 99}, {"frame": 1}, {"frame": -1}, {"column": -1}):
        body = json.dumps({**fields, **place, "flips": [0], **wrong})
        assert refused(server, "POST", "/flip", body, OWN)[0] == 400


def test_animations_frame_by_frame(server, codec):
    found = asked(server, "/open?name=a.webp", animation(MOST_FRAMES + 3))
    assert found["frames"] == MOST_FRAMES
    assert f"the first {MOST_FRAMES} frames are taken" in found["notes"]
    made = asked(server, "/encode", {"id": found["id"], "bits": 6})
    frames = picture(24, 40, MOST_FRAMES)
    data = codec.encode(frames, rate=12.5)
    assert abs(made["bytes"] - len(data)) < 8  # the rate is another way to write the same
    np.testing.assert_array_equal(pixels(server, found["picture"], 5), frames[5])
    decoded = codec.decode(data).frames
    np.testing.assert_array_equal(pixels(server, made["picture"], 5), decoded[5])
    assert pixels(server, made["map"]["picture"], 15).shape == (24, 40, 3)
    assert refused(server, "GET", f"/pictures/{made['picture']}/16.png")[0] == 404


def test_videos(server, codec, tmp_path):
    file = write_video(tmp_path / "a.mp4", 5, size=(32, 48))
    found = asked(server, "/open?name=a.mp4", file.read_bytes())
    assert (found["frames"], found["height"], found["width"]) == (5, 32, 48)
    assert {"jpeg", "webp"} <= set(found["codecs"])
    fields = {"id": found["id"], "bits": 4}
    made = asked(server, "/encode", fields)
    data = codec.encode(file, bits=4)
    assert made["bytes"] == len(data)
    decoded = codec.decode(data).frames
    np.testing.assert_array_equal(pixels(server, made["picture"], 4), decoded[4])
    token = {**fields, "frame": 4, "row": 1, "column": 2, "flips": [1]}
    flipped = asked(server, "/flip", token)
    assert (pixels(server, flipped["picture"]) != decoded[4]).any()
    line = asked(server, "/compare", {**fields, "codec": found["codecs"][-1]})
    assert pixels(server, line["picture"], 4).shape == (32, 48, 3)


def test_large_pictures_are_made_smaller():
    wide = open_file("a.png", png(np.zeros((700, 2100, 3), np.uint8)))
    assert wide.frames.shape[1:3] == (591, 1773)
    assert wide.notes == ("made smaller, from 2100x700 to 1773x591 pixels",)
    assert MOST_PIXELS >= 591 * 1773
    clip = open_file("a.webp", animation(2, 400, 400))
    assert clip.frames.shape[1] * clip.frames.shape[2] <= MOST_CLIP_PIXELS
    thin = open_file("a.png", png(np.zeros((1, 5000, 3), np.uint8)))
    assert thin.frames.shape == (1, 1, 2048, 3)
    with pytest.raises(UserError, match=r"has 81,000,000 pixels"):
        open_file("a.png", png(np.zeros((9000, 9000, 3), np.uint8)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "x.png is empty"),
        (b"no picture", "x.png is no picture or video that can be read: "),
        (png(picture(64, 64)[0])[:500], "x.png is no picture or video that can be read: "),
        (b"\0\0\0\x20ftypisom" + bytes(40), "x.png is no picture or video that can be read: "),
        (b"\x8bBSQ\r\n\x1a\n", "x.png is a .bsq file"),
    ],
)
def test_broken_uploads_are_a_line(server, content, said):
    status, line = refused(server, "POST", "/open?name=x.png", content, OWN)
    assert status == 400
    assert line.startswith(said)


def test_uploads_that_are_too_large(server):
    status, line = refused(server, "POST", "/open?name=x", bytes(MOST_UPLOAD + 1), OWN)
    assert (status, line.partition(":")[0]) == (413, f"{MOST_UPLOAD + 1:,d} bytes are too many")
    assert refused(server, "POST", "/encode", bytes(2**17), OWN)[0] == 413
    with socket.create_connection(server.server_address[:2], timeout=10) as raw:  # says no length
        raw.sendall(f"POST /open HTTP/1.0\r\nHost: localhost\r\n{HEADER}: 1\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.0 411 ")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {"Host": "evil.example"}, 403),
        ("GET", "/", {"Host": "127.0.0.1.evil.example:8000"}, 403),
        ("GET", "/", {"Host": ""}, 403),
        ("GET", "/", {"Host": "localhost:9"}, 200),
        ("GET", "/", {"Host": "[::1]:8000"}, 200),
        ("POST", "/sample", {}, 403),
        ("POST", "/sample", {**OWN, "Host": "evil.example"}, 403),
        ("POST", "/sample", {**OWN, "Origin": "http://evil.example"}, 403),
        ("POST", "/sample", {**OWN, "Origin": "null"}, 403),
        ("POST", "/sample", {**OWN, "Host": "localhost:7", "Origin": "http://localhost:7"}, 200),
        ("OPTIONS", "/sample", {"Origin": "http://evil.example"}, 501),
        ("DELETE", "/", {}, 501),
        ("GET", "/nothing", {}, 404),
        ("GET", "/../server.py", {}, 404),
        ("GET", "/%2e%2e/server.py", {}, 404),
        ("GET", "/pictures/unknown/0.png", {}, 404),
        ("POST", "/nothing", OWN, 404),
    ],
)
def test_who_is_answered(server, method, path, headers, status):
    body = json.dumps({"name": "chelsea.png"}) if method == "POST" else None
    if status == 200:
        assert request(server, method, path, body, headers)[0] == 200
    else:
        assert refused(server, method, path, body, headers)[0] == status


@pytest.mark.parametrize(
    "body",
    [
        *(b"{", b"[]", b"\xff", b"[" * 9999, b'{"id": "unknown"}', b'{"id": 1, "bits": 6}'),
        *(b'{"id": "ID", "bits": true}', b'{"id": "ID", "bits": 3}', b'{"id": "ID", "bits": 1e9}'),
    ],
)
def test_requests_that_are_wrong(server, opened, body):
    body = body.replace(b"ID", opened["id"].encode())
    assert refused(server, "POST", "/encode", body, OWN)[0] == 400


def test_a_failure_nobody_expected_is_a_line(server, opened, monkeypatch, capsys):
    def fail(*_):
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(server.workbench, "_coded", fail)
    body = json.dumps({"id": opened["id"], "bits": 6})
    assert refused(server, "POST", "/encode", body, OWN) == (500, "this failed: a")
    assert capsys.readouterr().err == "/encode failed: a\n"
    monkeypatch.undo()
    assert asked(server, "/encode", {"id": opened["id"], "bits": 6})["bits"] == 6


def test_old_pictures_make_room():
    shelf = Shelf(most=2 * 48)
    names = [shelf.put(np.full((1, 4, 4, 3), value, np.uint8)) for value in range(3)]
    with pytest.raises(Gone):
        shelf.png(names[0], 0)
    assert np.asarray(Image.open(io.BytesIO(shelf.png(names[2], 0)))).max() == 2
    large = shelf.put(np.zeros((9, 4, 4, 3), np.uint8))
    assert shelf.png(large, 8)


@pytest.mark.parametrize(
    ("host", "name", "served"),
    [
        ("127.0.0.1", "10.0.0.7:8000", False),
        ("0.0.0.0", "10.0.0.7:8000", True),
        ("0.0.0.0", "evil.example", False),
        ("0.0.0.0", "localhost:8000", True),
        ("10.0.0.7", "10.0.0.7", True),
        ("10.0.0.7", "localhost", False),
        ("::", "[fe80::1]:8000", True),
        ("localhost", "127.0.0.1:1", True),
        ("localhost", "[:", False),
    ],
)
def test_names_of_a_server(host, name, served):
    headers = Message()
    headers["Host"] = name
    assert (Guard(host).refusal(headers, computes=False) == "") == served
    assert Guard(host).loopback == (host in ("127.0.0.1", "localhost"))


def test_mistakes_in_the_command(capsys, tmp_path):
    with bound("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        for words, said in (
            (("--port", "65536"), "--port 65536: give 0 to 65535"),
            (("--port", port), f"cannot serve at 127.0.0.1, port {port} (Address already in use)"),
            (("--host", "no such", "--port", "0"), "cannot serve at no such, port 0 (there is no"),
            (("--port", "0"), f"{tmp_path / 'no'} does not exist"),
        ):
            assert cli.main(["demo", "--model", str(tmp_path / "no"), *words]) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"error: {said}")
            assert error.count("\n") == 1


def test_ctrl_c_ends_a_real_server(codec, tmp_path):
    codec.save(tmp_path / "model")
    code = (
        "import signal, sys; from bsq_jax import cli;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # ignored in the background
        "from bsq_jax.cli.command import leave; leave(cli.main(sys.argv[1:]))"
    )
    words = ["demo", "--model", str(tmp_path / "model"), "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True
    ) as process:
        line = process.stderr.readline()
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/ shows \w+; Ctrl-C ends it\n", line)
        assert found, line
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
        connection.request("GET", "/about")
        assert json.loads(connection.getresponse().read())["bits"] == [4, 5, 6]
        connection.close()
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=30)
    assert (process.returncode, rest) == (130, "interrupted: the page is no longer served\n")
