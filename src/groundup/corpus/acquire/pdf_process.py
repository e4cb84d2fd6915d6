"""The process that reads PDF files for `pdf.py`: paths in, one line per page out.

Not to be imported: it redirects its standard output and limits its own resources.
"""

import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pypdfium2

MEMORY_BYTES = 2 << 30
PAGE_SECONDS = 10.0  # of processor time; also for opening a file
FILE_SECONDS = 300.0
# PDFium puts U+FFFE, or U+0002 in older ones, for the hyphen at which a line parts a word.
PARTED = re.compile(r"[\ufffe\x02]\r?\n?")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufffe\uffff\ud800-\udfff]")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # so that nothing a library prints is taken for an answer
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        path, max_pages = json.loads(line)
        for answer in _answers(bytes.fromhex(path), max_pages):
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _answers(path: bytes, max_pages: int) -> Iterator[dict[str, str]]:
    """{"page": text} for each page, then {"end": why there are no more, "" at the end of the file}."""
    signal.setitimer(signal.ITIMER_PROF, PAGE_SECONDS)  # the timer's signal ends the process
    started, reason = time.process_time(), ""
    try:
        with closing(pypdfium2.PdfDocument(Path(os.fsdecode(path)).read_bytes())) as document:
            for number in range(len(document)):
                if number >= max_pages or time.process_time() - started > FILE_SECONDS:
                    reason = "truncated"
                    break
                signal.setitimer(signal.ITIMER_PROF, PAGE_SECONDS)
                try:
                    with closing(document[number]) as page, closing(page.get_textpage()) as words:
                        text = words.get_text_range()
                except (pypdfium2.PdfiumError, ValueError, MemoryError):
                    reason = "damaged"
                    continue
                yield {"page": CONTROL.sub("", PARTED.sub("", text)).strip()}
    except (pypdfium2.PdfiumError, OSError, ValueError, MemoryError) as error:
        reason = "encrypted" if "password" in str(error).lower() else "damaged"
    signal.setitimer(signal.ITIMER_PROF, 0)
    yield {"end": reason}


if __name__ == "__main__":
    main()
