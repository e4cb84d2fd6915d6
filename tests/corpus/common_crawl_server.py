"""A tiny made-up crawl in the layout of data.commoncrawl.org, and a server on loopback that can misbehave."""

import gzip
import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from groundup.corpus.acquire.common_crawl import surt
from groundup.corpus.archive.warc import WarcWriter

CRAWL = "CC-MAIN-2026-17"
LANGUAGES = ("eng", "deu", "eng,deu", "fra")


def make(root: Path, hosts: list[str], pages_per_host: int = 12, captures_per_block: int = 5) -> dict[str, str]:
    """Write the crawl under `root`; returns url -> language of its pages. Every fifth capture is a 404."""
    indexes = root / f"cc-index/collections/{CRAWL}/indexes"
    indexes.mkdir(parents=True)
    warcs = [f"crawl-data/{CRAWL}/segments/1/warc/part-{n}.warc.gz" for n in range(2)]
    (root / warcs[0]).parent.mkdir(parents=True)
    (root / f"crawl-data/{CRAWL}/warc.paths.gz").write_bytes(gzip.compress("\n".join(warcs).encode() + b"\n"))
    captures, languages = [], {}
    writers = [WarcWriter(root / name) for name in warcs]
    for number in range(len(hosts) * pages_per_host):
        host, page = hosts[number % len(hosts)], number // len(hosts)
        url, language = f"http://{host}/p{page}", LANGUAGES[number % len(LANGUAGES)]
        status = 404 if number % 5 == 4 else 200
        name, writer = warcs[number % 2], writers[number % 2]
        start = writer.file.tell()
        body = f"<p>{url} " + f"word{number} " * (number % 50)
        writer.response(url, status, [("Content-Type", "text/html")], body.encode())
        fields = {"url": url, "mime": "text/html", "mime-detected": "text/html", "status": str(status)}
        fields |= {"length": str(writer.file.tell() - start), "offset": str(start), "filename": name}
        captures.append(f"{surt(host)})/p{page} 20260401000000 {json.dumps(fields | {'languages': language})}")
        if status == 200:
            languages[url] = language
    for writer in writers:
        writer.file.close()
    captures.sort()
    cdx, cluster = b"", []
    for at in range(0, len(captures), captures_per_block):
        block = gzip.compress("".join(line + "\n" for line in captures[at : at + captures_per_block]).encode())
        key = " ".join(captures[at].split(" ")[:2])
        cluster.append(f"{key}\tcdx-00000.gz\t{len(cdx)}\t{len(block)}\t{len(cluster) + 1}\n")
        cdx += block
    (indexes / "cdx-00000.gz").write_bytes(cdx)
    (indexes / "cluster.idx").write_text("".join(cluster))
    return languages


class Behaviour:
    """What was asked for, as "path start-end".

    `trouble`, of the number of the request and how often this end of a range was asked for before, is what to do
    instead of answering.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.answered: Counter[str] = Counter()
        self.ends: Counter[tuple[str, str]] = Counter()
        self.at_once = self.most_at_once = 0
        self.trouble = lambda number, before: ""
        self.lock = threading.Lock()


@contextmanager
def serve(root: Path):
    behaviour = Behaviour(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            wanted = self.headers["Range"].removeprefix("bytes=")
            with behaviour.lock:
                number = len(behaviour.asked)
                behaviour.asked.append(f"{self.path} {wanted}")
                before = behaviour.ends[self.path, wanted.partition("-")[2]]
                behaviour.ends[self.path, wanted.partition("-")[2]] += 1
                behaviour.at_once += 1
                behaviour.most_at_once = max(behaviour.most_at_once, behaviour.at_once)
            try:
                self.answer(behaviour.trouble(number, before), wanted)
            finally:
                with behaviour.lock:
                    behaviour.at_once -= 1

        def answer(self, trouble: str, wanted: str) -> None:
            file = root / self.path.lstrip("/")
            if trouble.isdigit() or not file.is_file():
                return self.plain(int(trouble) if trouble else 404, b"<Error>no</Error>")
            content = file.read_bytes()
            first, _, last = wanted.partition("-")
            part = content[int(first) : int(last) + 1 if last else None]
            if trouble == "whole":
                return self.plain(200, content)
            self.send_response(206)
            start = int(first) + (trouble == "shifted")
            self.send_header("Content-Range", f"bytes {start}-{int(first) + len(part) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(part) + (1000 if trouble == "long" else 0)))
            self.end_headers()
            if trouble in ("cut", "long"):
                self.wfile.write(part[: len(part) // 2])
                self.close_connection = True
            elif trouble == "drip":
                for byte in part[:20]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.02)
                self.close_connection = True
            elif trouble == "slow":
                time.sleep(0.02)
                self.wfile.write(part)
            else:
                self.wfile.write(part)
            with behaviour.lock:
                behaviour.answered[f"{self.path} {wanted}"] += 1

        def plain(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that was killed
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", behaviour
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
