"""book/_tools/links.py, against a server of its own: nothing outside of this machine is asked."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import links
import pytest

ROOT = Path(__file__).resolve().parents[2]


class Server(ThreadingHTTPServer):
    """Answers /CODE with that status, /CODE-then-CODE with one after the other, and counts."""

    asked: Counter[str]
    open_at_once = most_at_once = 0
    lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.open_at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.open_at_once)
        time.sleep(0.02)  # long enough for a second request to be seen beside this one
        with self.server.lock:  # before the answer: the next request may come right after it
            self.server.open_at_once -= 1
        codes = self.path.strip("/").partition("?")[0].split("-then-")
        code = codes[min(self.server.asked[self.path], len(codes) - 1)]
        self.server.asked[self.path] += 1
        if code == "cut":
            self.close_connection = True
        elif code == "moved":
            self.send_response(301)
            self.send_header("Location", "/200")
            self.end_headers()
        else:
            self.send_response(int(code))
            self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.asked = Counter()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def at(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{path}"


@pytest.mark.parametrize(
    ("path", "state", "times"),
    [
        ("200", "there", 1),
        ("moved", "there", 1),
        ("404", "dead", 1),
        ("410", "dead", 1),
        ("403", "unsure", 1),  # it refuses programs: no reason to ask again
        ("429", "unsure", 3),
        ("503-then-200", "there", 2),
        ("cut-then-200", "there", 2),
        ("500-then-404", "dead", 2),
        ("cut", "unsure", 3),
    ],
)
def test_what_an_answer_means(server: Server, path: str, state: str, times: int) -> None:
    waited: list[float] = []
    assert links.ask(at(server, path), rest=waited.append).state == state
    assert server.asked[f"/{path}"] == times and len(waited) == times - 1
    assert waited == sorted(waited) and all(waited)


def test_no_server_at_all_is_dead() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answer = links.ask(f"http://127.0.0.1:{port}/", rest=lambda _: None)
    assert answer.state == "dead" and "refused" in answer.why


def test_a_server_is_asked_one_thing_at_a_time(server: Server) -> None:
    waited: list[float] = []
    wanted = [at(server, f"200?{n}") for n in range(6)]
    found = links.ask_all(wanted, rest=waited.append)
    assert {one.state for one in found.values()} == {"there"} and set(found) == set(wanted)
    assert server.most_at_once == 1 and waited == [links.PAUSE] * 5


def test_dead_links_fail_and_others_do_not(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(links, "EXAMPLES", links.re.compile("nothing"))  # 127.0.0.1 is one
    monkeypatch.setattr(links, "PAUSE", 0.0)
    page = tmp_path / "html" / "page.html"
    page.parent.mkdir()
    summary = tmp_path / "summary.md"
    good = f'<a href="{at(server, "200#part")}">a</a><img src="{at(server, "403")}"><a href="x">'
    page.write_text(good)
    assert links.main(["--html", str(page.parent), "--summary", str(summary)]) == 0
    assert "403" in summary.read_text() and "**Dead" not in summary.read_text()
    page.write_text(good + f'<a href="{at(server, "404")}">b</a>')
    assert links.main(["--html", str(page.parent)]) == 1
    said = capsys.readouterr().out
    assert f"{at(server, '404')} (404 Not Found), in page.html" in said
    assert links.main(["--html", str(page.parent), "--skip", "/404"]) == 0


def test_addresses_are_found_without_what_surrounds_them() -> None:
    text = (
        "see <https://a.test/x>, [it](https://b.test/y_(z)), or https://c.test/d.\n"
        "`https://e.test/f#part` and http://localhost:8888 https://example.org/g "
        "https://github.com/owner/name"
    )
    assert links.addresses_in(text) == {
        "https://a.test/x", "https://b.test/y_(z)", "https://c.test/d", "https://e.test/f",
    }  # fmt: skip


def test_the_sources_name_addresses() -> None:
    places = links.of_sources(ROOT)
    assert len(places) > 100
    assert "book/references.bib" in places["https://arxiv.org/abs/2106.09685"]
    assert any("notebooks/17_shipping.ipynb" in where for where in places.values())
