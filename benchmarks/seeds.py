"""Small sound files of the kinds that sources read: where tests and fuzzing begin from."""

import io
import zipfile
from pathlib import Path

from groundup.corpus.archive.warc import WarcWriter


def wiki_dump(articles: dict[str, str], base: str = "https://de.wikipedia.org/wiki/Wikipedia:Hauptseite") -> str:
    pages = "".join(
        f"<page><title>{title}</title><ns>0</ns><id>{number}</id><revision><id>1</id><model>wikitext</model>"
        f'<text xml:space="preserve">{text.replace("&", "&amp;").replace("<", "&lt;")}</text></revision></page>\n'
        for number, (title, text) in enumerate(articles.items())
    )
    other = (
        '<page><title>Alt</title><ns>0</ns><redirect title="A"/><revision><text>#REDIRECT [[A]]</text></revision></page>'
        "<page><title>Vorlage:X</title><ns>10</ns><revision><text>x</text></revision></page>"
    )
    names = '<namespace key="0"/><namespace key="6">Datei</namespace><namespace key="14">Kategorie</namespace>'
    return (
        f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="de"><siteinfo><base>{base}</base>'
        f"<namespaces>{names}</namespaces></siteinfo>\n{pages}{other}</mediawiki>\n"
    )


def _post(number: int, kind: int, body: str, **more: object) -> str:
    body = body.replace("&", "&amp;").replace("<", "&lt;")
    attributes = {"Id": number, "PostTypeId": kind, **more, "Body": body}
    return "  <row " + "".join(f'{key}="{value}" ' for key, value in attributes.items()) + "/>\n"


POSTS = (
    '<?xml version="1.0" encoding="utf-8"?>\n<posts>\n'
    + _post(1, 1, "<p>They <b>do</b>.</p>", AcceptedAnswerId=4, Score=3, Title="Why do bees hum?")
    + _post(2, 1, "<p>Away.</p>", Score=0, Title="Where to?")
    + _post(3, 2, "<p>Wings.</p><pre><code>x = 1</code></pre>", ParentId=1, Score=9)
    + _post(4, 2, "<p>Muscles.</p>", ParentId=1, Score=-1)
    + _post(5, 2, "<p>Lost.</p>", ParentId=99, Score=1)
    + _post(6, 5, "a tag's page")
    + _post(7, 2, "<p>Both.</p>", ParentId=1, Score=2)
    + "</posts>\n"
)


def pdf(texts: list[str]) -> bytes:
    """A PDF file with a page for each text."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(texts)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(texts)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(texts):
        drawn = "BT /F1 12 Tf 14 TL 72 720 Td " + " ".join(f"({line}) Tj T*" for line in text.split("\n")) + " ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream",
        ]
    out, offsets = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n"
    rows = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    table = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{rows}"
    return f"{out}{table}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n".encode()


def oai_answer() -> str:
    records = "".join(
        f"<record><header><identifier>oai:a:{number}</identifier></header><metadata><oai_dc:dc>"
        f"<dc:title>Title {number}</dc:title><dc:description>about bees</dc:description></oai_dc:dc></metadata></record>"
        for number in range(3)
    )
    return f"<OAI-PMH><ListRecords>{records}<resumptionToken>a</resumptionToken></ListRecords></OAI-PMH>"


def wacz(folder: Path, names: tuple[str, ...], how: int) -> bytes:
    """A web archive with a WARC of two pages under each name."""
    with WarcWriter(folder / "made.warc.gz") as warc:
        for number in range(2):
            warc.response(f"http://a.org/{number}", 200, [("Content-Type", "text/html")], b"<p>page")
    content = (folder / "made.warc.gz").read_bytes()
    (folder / "made.warc.gz").unlink()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as file:
        for name in ("datapackage.json", *names):
            file.writestr(name, content)
    return out.getvalue()
