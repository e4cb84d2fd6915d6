"""Text of PDF files by PDFium (the extra `pdf`), in a process of its own: a crash or an endless loop costs one file.

One process reads file after file; another is started when a file ended it. It may not write to disk, take more than 2 GB of
memory, or more than 10 seconds of processor time per page.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import groundup
from groundup.core.errors import UserError
from groundup.data.readers import Refused

MAX_PDF_BYTES = 256 << 20
MAX_PAGES = 5000  # of a file
MAX_ANSWER = 1 << 24  # bytes of one page's text, as JSON
PATIENCE_SECONDS = 120.0  # wall time without a page: the processor may be busy with other processes


class PdfReader:
    """with PdfReader() as reader: text = reader.text(path, refused)"""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.buffered = b""

    def __enter__(self) -> "PdfReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def text(self, path: Path, refused: Refused) -> str:
        """The text of a file, a blank line between pages; what cannot be read is counted in `refused`.

        Raises UserError when the extra is missing.
        """
        if find_spec("pypdfium2") is None:
            raise UserError(f"{path}: a PDF, for which the package pypdfium2 is missing: pip install 'groundup[pdf]'")
        if path.stat().st_size > MAX_PDF_BYTES:
            refused.add("size", str(path))
            return ""
        pages: list[str] = []
        why = "damaged"
        for answer in self._answers(path):
            if "page" in answer:
                pages.append(answer["page"])
            else:
                why = answer["end"]
        text = "\n\n".join(page for page in pages if page)
        if why == "damaged" and text:
            why = "truncated"
        refused.add(why or "no text", str(path), int(bool(why) or not text))
        return text

    def _answers(self, path: Path) -> Iterator[dict[str, str]]:
        """Pages, then {"end": reason or ""}, which is missing where the process was killed."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        process = self.process
        assert process and process.stdin
        try:
            process.stdin.write(json.dumps([os.fsencode(path.resolve()).hex(), MAX_PAGES]).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            self._end()
            return
        while line := self._line():
            answer = json.loads(line)
            yield answer
            if "end" in answer:
                return
        self._end()

    def _line(self) -> bytes:
        """The next line; b"" when the process ended, is too slow, or the line is too long."""
        assert self.process and self.process.stdout
        output, deadline = self.process.stdout.fileno(), time.monotonic() + PATIENCE_SECONDS
        while b"\n" not in self.buffered:
            ready, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(output, 1 << 16) if ready else b""
            if not more or len(self.buffered) > MAX_ANSWER:
                return b""
            self.buffered += more
        line, _, self.buffered = self.buffered.partition(b"\n")
        return line

    def _start(self) -> None:
        self._end()
        path = os.pathsep.join([str(Path(groundup.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "groundup.corpus.acquire.pdf_process"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip

    def _end(self) -> None:
        process, self.process, self.buffered = self.process, None, b""
        if process:
            process.kill()
            process.communicate()
