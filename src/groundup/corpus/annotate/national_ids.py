"""National identity numbers in text, of countries whose numbers have check digits, which python-stdnum proves.

Some are written as nothing else is, so their form is enough: the Italian fiscal code, the Brazilian CPF with its points. Of
numbers in plain digits one in ten to one in a hundred is valid by chance, so these count only behind their name, on the same
line or at the end of the line above. Numbers without check digits (British national insurance, Danish CPR since 2007) are not
looked for.
"""

import re
from collections.abc import Iterator
from importlib import import_module

KNOWN_BY_FORM = {  # pattern of what follows the first digit
    "fi.hetu": r"\d{5}[-+A]\d{3}[A-Y]",
    "br.cpf": r"\d\d\.\d{3}\.\d{3}-\d\d",
    "cl.rut": r"\d?\.\d{3}\.\d{3}-[\dkK]",
    "ch.ssn": r"(?<=7)56\.\d{4}\.\d{4}\.\d\d",
    "be.nn": r"\d\.\d\d\.\d\d-\d{3}\.\d\d",
    "fr.nir": r"(?<=[12]) \d\d [01]\d \d[\dAB] \d{3} \d{3} \d\d",
    "cn.ric": r"\d{5}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]",
}
LETTERS_FIRST = {  # how many letters, and pattern of what follows the first digit
    "it.codicefiscale": (6, r"\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]"),
    "mx.curp": (4, r"\d{5}[HM][A-Z]{5}[A-Z\d]\d"),
}
FORM = re.compile(
    r"\d(?:(?<![\w.+/-].)(?:" + "|".join(f"({form})" for form in KNOWN_BY_FORM.values()) + ")|"
    + "|".join(rf"(?<=(?<!\w)[A-Z]{{{size}}}.)({form})" for size, form in LETTERS_FIRST.values()) + r")(?![\w-])",
    re.ASCII,
)  # fmt: skip
FORMS = [(import_module(f"stdnum.{name}"), LETTERS_FIRST.get(name, (0,))[0]) for name in (*KNOWN_BY_FORM, *LETTERS_FIRST)]
NAMES = {  # abbreviations that are also words count in capitals only
    "at.vnr": r"(?i:sozialversicherungsnummer)|SVNR|SV-Nr",
    "au.tfn": r"(?i:tax file number)|TFN",
    "be.nn": r"(?i:rijksregisternummer|num[ée]ro national)|NISS|INSZ",
    "bg.egn": r"ЕГН|EGN",
    "br.cpf": r"(?i:cpf)",
    "ca.sin": r"(?i:social insurance)|SIN",
    "ch.ssn": r"AHV-?(?:Nr|Nummer)?|AVS",
    "cl.rut": r"RUT|RUN",
    "cn.ric": r"身份证号?码?|公民身份号码",
    "cz.rc": r"(?i:rodn[ée] [čc][íi]slo)|r\. ?č",
    "de.idnr": r"(?i:steuer-?(?:id|identifikationsnummer|idnr)|steuerliche identifikationsnummer|idnr)",
    "ee.ik": r"(?i:isikukood)",
    "es.dni": r"(?i:dni|nif)",
    "es.nie": r"NIE",
    "fi.hetu": r"(?i:henkilötunnus|hetu)",
    "fr.nir": r"(?i:s[ée]curit[ée] sociale)|NIR|INSEE",
    "gb.nhs": r"(?i:nhs)",
    "gr.amka": r"AMKA|ΑΜΚΑ",
    "hr.oib": r"(?i:oib)",
    "ie.pps": r"PPSN?",
    "il.idnr": r"תעודת זהות|ת\.ז",
    "in_.aadhaar": r"(?i:aadh?aa?r)|आधार",
    "jp.in_": r"マイナンバー|個人番号",
    "kr.rrn": r"주민등록번호|RRN",
    "lt.asmens": r"(?i:asmens kodas)",
    "nl.bsn": r"(?i:bsn|burgerservicenummer|sofinummer)",
    "no.fodselsnummer": r"(?i:f[øo]dselsnummer|personnummer|fnr)",
    "pl.pesel": r"(?i:pesel)",
    "pt.nif": r"(?i:nif|contribuinte)",
    "ro.cnp": r"CNP|(?i:cod numeric personal)",
    "se.personnummer": r"(?i:personnummer|pers\.? ?nr)",
    "sk.rc": r"(?i:rodn[ée] [čc][íi]slo)",
    "tr.tckimlik": r"(?i:t\.?c\.? ?kimlik)|TCKN",
    "za.idnr": r"ID|(?i:identity)",
}
NAMED = [(re.compile(names), import_module(f"stdnum.{name}")) for name, names in NAMES.items()]
NAME_BEFORE = re.compile(  # with at most "number is:" and a line end between
    r"(?:(?<!\w)|(?<=[\u3041-\u30ff\u4e00-\u9fff\uac00-\ud7a3]))"
    rf"({'|'.join(NAMES.values())})(?i: ?(?:card|code|no|nr|number|nummer|n[úu]mero|n[°º]|#)\.?)?"
    r"[^\w\n]{0,3}(?:(?:is|ist|est|es|é)[: ]{1,2}|[はが是为為은는] ?[:：]? ?)?\n?[ \t]{0,3}\Z"
)
SPANISH = r"(?<!\w)[XYZ]"  # the first letter of the number of a foreigner in Spain
NUMBER = re.compile(
    rf"\d(?:(?<![\w./+-].)|(?<={SPANISH}.)|(?<={SPANISH}-.))[\d ./-]{{5,20}}[\dA-Za-z](?!\w)", re.ASCII
)
REACH = 56  # characters before the number that are searched for its name


def by_form(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each number that its form alone identifies, in order."""
    for match in FORM.finditer(text):
        module, letters = FORMS[(match.lastindex or 0) - 1]
        start, end = match.start() - letters, match.end()
        if module.is_valid(text[start:end]):
            yield start, end


def by_name(text: str, as_written: str) -> Iterator[tuple[int, int]]:
    """Start and end of each number that stands behind its name, in order. Numbers are read in `text`, names in the text
    `as_written`, as long."""
    for match in NUMBER.finditer(text):
        start = match.start()
        start -= next((size for size in (1, 2) if text[max(0, start - size) : start].startswith(("X", "Y", "Z"))), 0)
        name = NAME_BEFORE.search(as_written, max(0, start - REACH), start)
        if not name:
            continue
        modules = [module for pattern, module in NAMED if pattern.fullmatch(name[1])]
        # A word or another number may follow: the longest valid one counts.
        spaces = (position for position in range(match.end() - 1, match.start(), -1) if text[position] == " ")
        for end in (match.end(), *spaces):
            if any(module.is_valid(text[start:end]) for module in modules):
                yield start, end
                break
