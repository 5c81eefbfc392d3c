"""The web page: its command, the service behind it, its API, and a browser on it."""

import re
import shutil
import socket
import subprocess
import sys

import pytest
from PIL import Image, ImageDraw
from tiny import CAPTIONS, write_checkpoint

import captioner
from app import texts
from app.__main__ import main
from app.service import Request, Service
from captioner import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:::gradio.queueing")  # its use of pandas

WAIT = 120  # seconds, for a machine that is busy with a training
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
USUAL = {
    "beam_size": 3, "max_words": 6, "length_norm": 0.7, "sample": False, "temperature": 1.0,
    "top_p": 1.0, "captions": 2, "seed": 0,
}  # fmt: skip


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def uploaded(path):
    """Return an uploaded file as gradio passes it on."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return captioner.load(write_checkpoint(tmp_path_factory.mktemp("app") / "checkpoint"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    image = Image.new("RGB", (320, 200), "skyblue")
    ImageDraw.Draw(image).ellipse((60, 40, 180, 160), fill="darkred")
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    image.save(path)
    return path


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    path = tmp_path_factory.mktemp("broken") / "broken.jpg"
    path.write_text("this is no picture")
    return path


# The command


def test_a_missing_checkpoint_ends_in_one_line(capsys):
    assert main(["--checkpoint", "runs/nowhere", "--port", "0"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: no checkpoint at runs/nowhere")
    assert printed.err.count("\n") == 1
    assert not printed.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prot", "80"], "unrecognized arguments: --prot 80"),
        (["--port", "high"], "'high' is not a port"),
        (["--port", "70000"], "'70000' is not a port"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
    ],
)
def test_a_wrong_option_ends_in_one_line(options, message, capsys):
    assert main(options) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_port_in_use_ends_in_one_line_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["--port", port, "--checkpoint", "runs/nowhere"]) == 1
    error = capsys.readouterr().err
    assert error == (
        f"error: cannot listen on 127.0.0.1 port {port}: address already in use; "
        "choose another --port or --host\n"
    )


# The service behind the page


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beam_size", 0), ("beam_size", 10**9), ("beam_size", 2.5), ("beam_size", "3"),
        ("beam_size", None), ("beam_size", True), ("max_words", 10**9), ("captions", []),
        ("temperature", float("nan")), ("temperature", 0), ("length_norm", float("inf")),
        ("top_p", -1), ("seed", -1), ("sample", "yes"),
    ],
)  # fmt: skip
def test_a_setting_out_of_bounds_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is "):
        Request(**{**USUAL, name: value})


def test_a_whole_number_may_come_as_a_float():
    assert Request(**{**USUAL, "beam_size": 3.0}).beam_size == 3


def test_the_best_caption_has_an_overlay_for_each_word(model, photo):
    answer = Service(model).answer(uploaded(photo), Request(**USUAL))
    assert [word for _, word in answer.overlays] == list(answer.best.words)
    assert {image.size for image, _ in answer.overlays} == {(320, 200)}


def test_a_decoder_without_attention_has_captions_but_no_overlays(tmp_path, photo):
    folder = write_checkpoint(tmp_path / "checkpoint", "show_tell")
    answer = Service(captioner.load(folder)).answer(uploaded(photo), Request(**USUAL))
    assert len(answer.captions) == 2
    assert answer.overlays == []


@pytest.mark.parametrize(("sample", "found"), [(False, 3), (True, 5)])
def test_only_a_search_is_limited_to_its_beams(model, photo, sample, found):
    request = Request(**{**USUAL, "sample": sample, "captions": 5})
    answer = Service(model).answer(uploaded(photo), request, overlays=False)
    assert len(answer.captions) == found


def test_a_broken_image_is_named_without_its_folder(model, broken):
    with pytest.raises(
        DataError, match=r"^broken\.jpg: it is not an image in a known format; give"
    ):
        Service(model).answer(uploaded(broken), Request(**USUAL))


@pytest.mark.parametrize("picture", [None, "photo.jpg", {"path": "photo.jpg"}, {"meta": "x"}, 7])
def test_a_file_that_gradio_did_not_check_is_not_opened(model, picture):
    with pytest.raises(DataError, match=r"no picture yet|was not uploaded|picture is text"):
        Service(model).answer(picture, Request(**USUAL))


# The page, running


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        from app.page import launch

        page = launch(model, "127.0.0.1", free_port())
        yield page.local_url.rstrip("/")
        page.close()


@pytest.fixture(scope="module")
def client(url):
    from gradio_client import Client

    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def chromium():
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium here: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture
def visit(chromium, url):
    page = chromium.new_page()
    page.set_default_timeout(WAIT * 1000)
    page.goto(url)
    page.wait_for_selector("#go")
    yield page
    page.close()


@pytest.mark.slow
def test_the_api_returns_caption_words_score_and_alternatives(client, photo):
    from gradio_client import handle_file

    answer = client.predict(handle_file(photo), beam_size=3, captions=3, api_name="/caption")
    assert answer["caption"] == " ".join(answer["words"])
    assert len(answer["alternatives"]) == 2
    scores = [answer["score"], *(other["score"] for other in answer["alternatives"])]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.slow
def test_the_api_says_what_is_wrong(client, photo, broken):
    from gradio_client import exceptions, handle_file

    with pytest.raises(
        exceptions.AppError, match=r"^broken\.jpg: it is not an image in a known format"
    ):
        client.predict(handle_file(broken), api_name="/caption")
    with pytest.raises(exceptions.AppError, match="beam_size is 99; it must be a whole number"):
        client.predict(handle_file(photo), beam_size=99, api_name="/caption")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "http://127.0.0.1:9/x.jpg",
            r"http://127\.0\.0\.1:9/x\.jpg cannot be downloaded: .*; upload",
        ),
        ("https://nowhere.invalid/x.jpg", "https://nowhere.invalid/x.jpg cannot be downloaded: "),
    ],
)
def test_a_url_that_cannot_be_fetched_is_an_error_that_says_so(client, place, message, capfd):
    from gradio_client import exceptions, handle_file

    with pytest.raises(exceptions.AppError, match=message):
        client.predict(handle_file(place), api_name="/caption")
    with pytest.raises(exceptions.AppError, match=r"the picture is text; .*handle_file"):
        client.predict(place, api_name="/caption")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(("sample", "idle"), [(False, {"temperature", "top_p", "seed"}),
                                              (True, {"beam_size"})])  # fmt: skip
def test_settings_without_effect_are_not_passed_on(sample, idle):
    request = Request(**{**USUAL, "sample": sample})
    assert USUAL.keys() - request.settings().keys() == idle


@pytest.mark.slow
@pytest.mark.parametrize("mark", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_the_api_opens_no_file_that_was_not_uploaded(url, photo, mark):
    httpx = pytest.importorskip("httpx")
    asked = {"data": [{"path": str(photo), **mark}]}
    event = httpx.post(f"{url}/gradio_api/call/caption", json=asked, timeout=WAIT).json()
    answer = httpx.get(f"{url}/gradio_api/call/caption/{event['event_id']}", timeout=WAIT).text
    assert answer.startswith("event: error")


@pytest.mark.slow
@pytest.mark.parametrize("language", ["python", "bash"])
def test_the_pages_api_examples_work(url, photo, language):
    code = re.search(f"```{language}\n(.*?)```", texts.API, re.DOTALL)[1]
    code = code.replace("http://127.0.0.1:7860", url)
    if language == "bash" and shutil.which("curl") is None:
        pytest.skip("no curl here")
    program = "bash" if language == "bash" else sys.executable
    run = subprocess.run(
        [program, "-c", code], cwd=photo.parent, capture_output=True, text=True, timeout=WAIT
    )
    assert run.returncode == 0, run.stderr
    assert any(word in run.stdout for word in " ".join(CAPTIONS).split())
    assert "error" not in run.stdout


@pytest.mark.slow
def test_a_visitor_uploads_an_image_and_reads_its_caption(visit, url, photo):
    elsewhere = []
    visit.on("request", lambda request: elsewhere.append(request.url))
    visit.reload()
    visit.set_input_files("#picture input[type=file]", photo)
    visit.wait_for_selector("#picture img")
    visit.click("#go")
    visit.wait_for_selector("#looks img")
    caption = visit.input_value("#caption textarea")
    assert set(caption.split()) <= set(" ".join(CAPTIONS).split())
    assert visit.locator("#looks .caption-label").all_inner_texts() == caption.split()
    assert caption in visit.inner_text("#table")
    local = (url, "data:", "blob:")
    assert [asked for asked in elsewhere if not asked.startswith(local)] == []


@pytest.mark.slow
def test_a_visitor_reads_what_is_wrong_with_an_image(visit, broken):
    visit.click("#go")
    visit.wait_for_selector("#note:has-text('there is no picture yet')")
    visit.set_input_files("#picture input[type=file]", broken)
    visit.wait_for_selector("#note [role=alert]", state="detached")
    visit.click("#go")
    visit.wait_for_selector("#note:has-text('broken.jpg: it is not an image in a known format')")


@pytest.mark.slow
def test_a_click_on_a_sample_captions_it(visit):
    visit.locator("#examples button").first.click()
    visit.wait_for_selector("#looks img")
    assert visit.input_value("#caption textarea")
