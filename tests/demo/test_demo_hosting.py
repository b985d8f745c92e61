"""The demo as those meet it who would abuse it: over HTTP, with whatever a browser would never send."""

import http.client
import json
import os
import socket
import threading
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from conftest import WAITING
from demo import TIMEOUT, check, served, visited
from gradio_client import Client, handle_file
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from t2iedit import Request, generate, open_model

pytestmark = [
    pytest.mark.slow,
    # gradio's client leaves sockets and loops to the collector.
    pytest.mark.filterwarnings("default"),
]
PROMPT = "a red cat and a blue dog"
KEY = {"_type": "gradio.FileData"}


class Stranger:
    """Calls what the page's own scripts call, with any values."""

    def __init__(self, url):
        self.url = url
        self.config = json.loads(self.get("config"))
        self.parts = {part["id"]: part["props"] for part in self.config["components"]}
        self.session = uuid.uuid4().hex

    def get(self, path, **headers):
        asked = urllib.request.Request(self.url + path, headers=headers)
        with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:
            return answer.read()

    def upload(self, name, data):
        """The path under which the server keeps the file. Raises `HTTPError`."""
        mark = uuid.uuid4().hex
        body = (
            f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode() + data + f"\r\n--{mark}--\r\n".encode()  # fmt: skip
        asked = urllib.request.Request(
            f"{self.url}gradio_api/upload",
            data=body,
            headers={"Content-Type": f"multipart/form-data; boundary={mark}"},
        )
        with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:
            return json.loads(answer.read())[0]

    def call(self, element, event, **values):
        """What the listener of an element's event answers, its inputs as on a fresh page but for those named by element or label."""
        joined = self.join(element, event, **values)
        assert "event_id" in joined, joined
        return self.answer(joined["event_id"])

    def join(self, element, event, **values):
        listener = next(
            found for found in self.config["dependencies"] if self._is(found, element, event)
        )
        data = [self._value(number, values) for number in listener["inputs"]]
        body = {
            "data": data,
            "fn_index": listener["id"],
            "session_hash": self.session,
            "trigger_id": 1,
        }
        asked = urllib.request.Request(
            f"{self.url}gradio_api/queue/join",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:
            return json.loads(answer.read())

    def answer(self, event_id):
        place = f"{self.url}gradio_api/queue/data?session_hash={self.session}"
        with urllib.request.urlopen(place, timeout=TIMEOUT) as stream:
            for line in stream:
                said = json.loads(line[5:]) if line.startswith(b"data:") else {}
                if said.get("msg") == "process_completed" and said["event_id"] == event_id:
                    return said
        raise AssertionError("the stream ended without an answer")

    def _is(self, listener, element, event):
        # The last listener of a button computes; others only scroll.
        targets = [
            (self.parts[n].get("elem_id"), what)
            for n, what in listener["targets"]
            if n in self.parts
        ]
        return (element, event) in targets and listener["backend_fn"]

    def _value(self, number, values):
        props = self.parts[number]
        for name in (props.get("elem_id"), props.get("label")):
            if name is not None and name in values:
                return values[name]
        return props.get("value")


@pytest.fixture
def stranger(url):
    return Stranger(url)


@pytest.fixture
def secret(tmp_path):
    """A perfectly good concept of the host's, in a place that is nobody's business."""
    path = tmp_path / "secret.safetensors"
    save_file({"<secret>": torch.zeros(1, 32)}, path)
    return path


@pytest.fixture
def trap(tmp_path):
    """A pipe: whoever opens it to read waits for ever."""
    path = tmp_path / "trap.safetensors"
    os.mkfifo(path)
    return path


def refused(answer):
    """By Gradio itself, before anything of ours sees it: without a sentence, and without an answer."""
    assert not answer["success"] and answer["output"] == {"error": None}


def told(answer):
    """The sentence of a refusal, which names no folder of the host."""
    assert not answer["success"]
    said = answer["output"]["error"]
    assert said and "/tmp/" not in said and "Traceback" not in said
    return said


def recipe_png(tmp_path, **recipe):
    chunks = PngInfo()
    chunks.add_itxt("t2iedit", json.dumps({"prompt": PROMPT} | recipe))
    Image.new("RGB", (8, 8)).save(tmp_path / "made.png", pnginfo=chunks)
    return (tmp_path / "made.png").read_bytes()


def given(path, name="x.png"):
    return {"path": str(path), "orig_name": name, "meta": KEY}


# Reading files.


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        str(Path(__file__)),
        "../pyproject.toml",
        "demos/app.py",
        "..%2f..%2fetc%2fpasswd",
        "/proc/self/environ",
    ],
)
def test_no_file_of_the_host_is_served(stranger, path, listed):
    for place in (path, str(listed / "notes.txt")):
        with pytest.raises(urllib.error.HTTPError) as error:
            stranger.get(f"gradio_api/file={place}")
        assert error.value.code in (403, 404)


@pytest.mark.parametrize("place", ["/etc/passwd", "/proc/self/environ", "../../etc/passwd"])
def test_a_path_in_place_of_an_upload_is_refused(stranger, place, secret):
    for path in (place, secret):
        options = [given(path, "a.safetensors")]
        refused(stranger.call("dropped", "upload", dropped=given(path)))
        refused(
            stranger.call("generate", "click", chosen=["core"], **{"concept (needed)": options})
        )
        refused(stranger.call("learn", "click", pictures=[{"image": given(path), "caption": None}]))


def test_an_address_in_place_of_an_upload_is_not_fetched(stranger):
    called = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(
            target=lambda: called.append(listener.accept()) if listener else None, daemon=True
        ).start()
        place = f"http://127.0.0.1:{port}/x.png"
        refused(stranger.call("dropped", "upload", dropped=given(place) | {"url": place}))
        refused(stranger.call("dropped", "upload", dropped=given("/etc/hostname") | {"url": place}))
        assert not called
        socket.create_connection(("127.0.0.1", port)).close()


def test_options_name_only_uploads_and_listed_files(url, secret, trap, listed):
    client = Client(url, verbose=False, httpx_kwargs={"timeout": TIMEOUT})
    for path in (secret, trap, listed / "notes.txt", "../listed/notes.txt", "/etc/passwd"):
        edits = [{"name": "core", "options": {"concept": [str(path)]}}]
        with pytest.raises(Exception, match="is not on offer here") as error:
            client.predict({"prompt": "a <secret>", "edits": edits}, api_name="/generate")
        assert str(secret.parent) not in str(error.value)


# Opening checkpoints.


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"model": "/etc"}, 'the model "etc" is not on offer here'),
        ({"model": "someone/elses"}, 'the model "elses" is not on offer here'),
        ({"model": ".."}, "is not on offer here"),
        ({"conditioning": "/etc/passwd"}, "files of encoded prompts are not on offer here"),
        ({"loras": ["/etc/passwd:1"]}, "LoRA files are not on offer here"),
        ({"edits": [{"name": "mixdq", "options": {"recipe": "/etc"}}]}, "is not on offer here"),
        ({"output": "/tmp/x"}, 'a request has no "output"'),
    ],
)
def test_no_checkpoint_and_no_file_is_opened_by_its_path(url, asked, says):
    client = Client(url, verbose=False, httpx_kwargs={"timeout": TIMEOUT})
    with pytest.raises(Exception, match=says):
        client.predict({"prompt": PROMPT} | asked, api_name="/generate")


def test_a_dropped_recipes_paths_are_matched_and_never_opened(stranger, tmp_path, trap, secret):
    concept = {"name": "core", "options": {"concept": [str(trap)]}}
    for recipe, says in (
        ({"model": str(secret.parent)}, "is not on offer here"),
        ({"edits": [concept]}, 'the file "trap.safetensors" is not on offer here'),
        ({"loras": [str(trap)]}, "LoRA files are not on offer here"),
        ({"conditioning": str(trap)}, "files of encoded prompts are not on offer here"),
    ):
        png = stranger.upload("made.png", recipe_png(tmp_path, **recipe))
        assert says in told(stranger.call("dropped", "upload", dropped=given(png)))


def test_a_dropped_recipes_model_is_matched_by_its_name(stranger, tmp_path):
    png = stranger.upload("made.png", recipe_png(tmp_path, model="/elsewhere/tiny", seeds=[5]))
    answer = stranger.call("dropped", "upload", dropped=given(png))
    assert answer["success"] and answer["output"]["data"][:2] == ["tiny", PROMPT]


# Uploads.


def test_what_is_no_picture_is_no_picture(stranger, tmp_path):
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    bomb = (tmp_path / "bomb.png").read_bytes()
    for name, data, says in (
        ("a.png", b"\x89PNG\r\n\x1a\nnothing more", "cannot be read as a picture"),
        ("b.png", b"<svg onload=alert(1)>", "cannot be read as a picture"),
        ("bomb.png", bomb, "pixels"),
    ):
        path = stranger.upload(name, data)
        answer = stranger.call(
            "learn", "click", pictures=[{"image": given(path, name), "caption": None}]
        )
        assert says in told(answer)
    path = stranger.upload("bomb.png", bomb)
    assert "bomb.png" in told(stranger.call("dropped", "upload", dropped=given(path)))


def test_embeddings_are_safetensors_only(stranger):
    pickle = b"\x80\x04cposix\nsystem\n(Vtouch hacked\ntR."
    path = stranger.upload("evil.safetensors", pickle)
    options = {"concept (needed)": [given(path, "evil.safetensors")]}
    answer = stranger.call("generate", "click", chosen=["core"], prompt="a <x>", **options)
    assert "is not a safetensors file" in told(answer)
    path = stranger.upload("evil.pt", pickle)
    options = {"concept (needed)": [given(path, "evil.pt")]}
    told(stranger.call("generate", "click", chosen=["core"], prompt="a <x>", **options))


def test_too_large_an_upload_is_refused(stranger):
    with pytest.raises(urllib.error.HTTPError) as error:
        stranger.upload("large.png", bytes(17 * 2**20))
    assert error.value.code == 413


def test_an_upload_cannot_leave_its_folder(stranger):
    path = stranger.upload("../../../../tmp/escaped.png", b"x")
    assert Path(path).name == "escaped.png" and "t2iedit-demo-" in path
    assert not Path("/tmp/escaped.png").exists()


# Limits.


@pytest.mark.parametrize(
    ("element", "values", "says"),
    [
        ("generate", {"prompt": "x" * 1001}, "the prompt's characters may be at most 1000"),
        ("generate", {"negative": "x" * 1001}, "the negative prompt's characters"),
        ("generate", {"Width": 4096}, "the width in pixels may be at most 1024"),
        ("generate", {"steps": 101}, "100"),
        ("generate", {"seed": -1}, "a seed is a whole number"),
        ("generate", {"others": '{"prompts": {"clip": "' + "x" * 1001 + '"}}'}, "single encoders"),
        ("learn", {"pictures": None}, "there are no pictures to learn from"),
        ("sweep", {"chosen": []}, 'switch the edit "decor" on'),
    ],
)
def test_what_is_too_much_is_refused_with_a_sentence(stranger, element, values, says):
    assert says in told(stranger.call(element, "click", **values))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"seeds": list(range(5))}, "the images at once may be at most 4"),
        ({"size": [64, 2048]}, "the height in pixels may be at most 1024"),
        ({"steps": 101}, "the steps may be at most 100"),
    ],
)
def test_scripts_have_the_same_limits(url, asked, says):
    client = Client(url, verbose=False, httpx_kwargs={"timeout": TIMEOUT})
    with pytest.raises(Exception, match=says):
        client.predict({"prompt": PROMPT} | asked, api_name="/generate")


def test_the_queue_is_bounded(url):
    long = {"steps": 100, "Width": 256, "Height": 256}

    def join(_):
        stranger = Stranger(url)
        try:
            stranger.join("generate", "click", **long)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())["detail"], stranger
        return 200, "", stranger

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(join, range(WAITING + 8)))
    refused = [(code, said) for code, said, _ in answers if code != 200]
    assert refused and all(code == 503 and "Queue is full" in said for code, said in refused)
    assert sum(code == 200 for code, *_ in answers) <= WAITING + 2
    for code, _, stranger in answers:
        if code == 200:
            _leave(stranger)


def _leave(stranger):
    """As a closed window does: its stream begins, and ends."""
    place = urlsplit(stranger.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=TIMEOUT)
    connection.request("GET", f"/gradio_api/queue/data?session_hash={stranger.session}")
    connection.getresponse().close()
    connection.close()


# Scripts, and many at once.


def test_a_script_generates_what_the_library_does(url, folder):
    edits = [{"name": "decor", "options": {"undesired": ["fog"]}}]
    client = Client(url, verbose=False, httpx_kwargs={"timeout": TIMEOUT})
    image, report = client.predict(
        {"prompt": PROMPT, "seed": 3, "edits": edits}, api_name="/generate"
    )
    expected = generate(open_model(str(folder)), Request(PROMPT, seed=3, edits=edits)).image
    with Image.open(image) as made:
        assert made.convert("RGB").tobytes() == expected.tobytes()
        recipe = json.loads(made.info["t2iedit"])
    assert (recipe["prompt"], recipe["model"], recipe["seeds"]) == (PROMPT, "tiny", [3])
    assert report["edits"][0]["name"] == "decor" and str(folder.parent) not in json.dumps(report)


def test_a_script_brings_its_own_files(url, secret):
    client = Client(url, verbose=False, httpx_kwargs={"timeout": TIMEOUT})
    edits = [{"name": "core", "options": {"concept": ["secret.safetensors"]}}]
    asked = {"prompt": "a <secret> cat", "edits": edits}
    image, _ = client.predict(asked, [handle_file(str(secret))], api_name="/generate")
    with Image.open(image) as made:
        recipe = json.loads(made.info["t2iedit"])
    assert recipe["edits"][0]["options"]["concept"] == ["secret.safetensors"]
    with pytest.raises(Exception, match="is not on offer here"):
        client.predict(asked, api_name="/generate")


def test_only_generate_is_for_scripts(url):
    described = Client(url, verbose=False).view_api(return_format="dict")
    assert list(described["named_endpoints"]) == ["/generate"]
    assert "prompt, negative, model" in described["named_endpoints"]["/generate"]["description"]


def test_twenty_visitors_at_once_lose_nothing_and_mix_nothing_up(url, folder):
    visits = visited(url, 20, 3.0, steps=2)
    check(visits, open_model(str(folder)), steps=2)
    assert not visits.lost and not visits.mixed
    assert len(visits.pictures) >= 20


# Starting and ending.


def test_a_password_is_asked_for_and_nothing_is_left_behind(folder, tmp_path):
    with served("-m", str(folder), "--auth", "me:secret", TMPDIR=str(tmp_path)) as url:
        assert list(tmp_path.glob("t2iedit-demo-*"))
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{url}config", timeout=TIMEOUT)
        assert error.value.code == 401
        client = Client(url, verbose=False, auth=("me", "secret"))
        client.predict({"prompt": "a cat"}, api_name="/generate")
    # Gradio itself makes an empty folder that nothing here uses.
    assert not list(tmp_path.glob("t2iedit-demo-*"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_page_is_for_this_machine_alone_unless_told_otherwise():
    import app

    args = app.parser().parse_args([])
    assert (args.host, args.share, args.auth) == ("127.0.0.1", False, None)


def test_a_taken_port_is_a_sentence(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with (
            pytest.raises(RuntimeError, match="t2iedit demo: port") as error,
            served("-m", str(folder), "--port", port, patience=60),
        ):
            pass
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--auth", "me"], "--auth takes NAME:PASSWORD"),
        (["--files", "/nowhere"], 'there is no folder "/nowhere"'),
        (["-m", "/nowhere"], 'there is no model "/nowhere"'),
    ],
)
def test_wrong_flags_are_a_sentence(folder, flags, says):
    model = [] if "-m" in flags else ["-m", str(folder)]
    with pytest.raises(RuntimeError, match=says) as error, served(*model, *flags):
        pass
    assert "Traceback" not in str(error.value)
