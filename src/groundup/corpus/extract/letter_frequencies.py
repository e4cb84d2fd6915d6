"""How well the letters of a text fit a language: this tells the right charset's reading of bytes from others.

Read in the wrong charset, letters become rare ones, those of other alphabets, or signs in the middle of words.
"""

import re
from collections import Counter

import regex

# Letters beyond ASCII, the frequent ones first.
ALPHABETS = {
    "de": "äüößé", "fr": "éèàêçôùîâûëïœæ", "es": "óíáéñúü", "pt": "ãçéáõíóêúâà", "it": "èàùòéì", "ca": "éèàóçòíúïü",
    "sv da no fi": "åäøöæé", "is": "áðíþóúæöéý", "nl": "ëéïèöüó", "sq": "ëç", "ga": "áíéóú", "cy": "âêîôûŵŷ", "mt": "ħġżċà",
    "pl": "łążęóśćńź", "cs sk": "íáěřčéýšžůúťďňóľĺŕôä", "hu": "áéöőóíüúű", "hr sl": "čšžćđ", "ro": "ăîâșțşţ",
    "tr az": "ıişçğüöâəî",
    "lt lv": "āīēšėųįžčąūęļņģķ", "et": "äõüöšž", "eo": "ĉĝŭĵŝĥ",
    "vi": "đàáạảãâầấậẩẫăằắặẳẵèéẹẻẽêềếệểễìíịỉĩòóọỏõôồốộổỗơờớợởỡùúụủũưừứựửữỳýỵỷỹ\u0300\u0301\u0303\u0309\u0323",
    "ru": "оеаинтсрвлкмдпуяызьбгчйхжшюцщэфёъ", "uk be": "оаниівтеркслудмпязьбгйчхцїжєюшщфґўыэё",
    "bg": "аиоентсрвлкдпмъзябугчцжщхюшфйь", "sr mk": "аоиенјрсутдкмвлпбзгчшжцћђхњљџфќѓѕ", "kk": "аеныртдлісмокғқбшуіпжгзүйөәңхһ",
    "el": "αοιετσνηυρπκμλςωδγχθφβξζψίόάέήύώϊϋΐΰ",
    "he": "יוהלאתרבמשנםעדחקפכגסטןזצךץף",
    "ar": "اليمنترعودبهسكفقحةجأشطصىخذئزءضغإثظؤآ", "fa ur": "اینردهومستیبشکزلگفقجعخپآحچغصطضژثظذئےںہھٹڈڑ",
    "th": "านรอกเงมยลวดตสทคปะ่้ีัิบหไจพชขใแ์ำโืุูผถศึณฐซธญษภ็ฝฤฎฟฉฆฌฏฑฒฬฮฯๆ",
    "hi mr ne": "ाकेरीन्िहसतमपलयोदबैजवगुचशखँंटथ", "ka": "აიეორნსდლმვბთგხტუკშპცძქღჯწყჩზ", "hy": "աննեիրտոուլկհմսվդցքբյըծպզգթշչ",
    # The commonest characters; others of their script count a little.
    "zh": (
        "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小么心多天而能好都然没日于起还发成"
        "事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些与高意进把法此实回二理美点月明其种声全工己"
        "話儿者向情部正名定女问力机给等几很业最间新什打便位因重被走电四第门相次东政海口使教西再平真听世气信北少关并内加化由却代军产入先山"
        "這來國個說們為時後過對會學裡沒還發開經頭兩長樣現將與進實點種聲兒問機給幾業間電門東聽氣關並軍產權應員論體當動"
    ),
    "ja": (
        "のにをはたがでてとしれさいなるっらかりあこもよくきすまそ日年人一大本中国者出月会上生自時分事行見発的動場学合社地方部新前後間文化用力制同名現高私権"
        "問業員立開手代明目通言理体主題意不作度公持野以思家世多正安院心界教元重近考海売知道集別物使品計死特始運終広住真有少料工建空止送切転研究楽起着店質待"
        "試族親験英医味答夜音注帰古歌悪図室歩風館屋色走習旅東京西電話語書何先子女男入全対関係条約法律利益保障由平等及又当両実成定決表記受得要約連続選"
    ),
    "ko": "이다의는에을고가한하지로사를기은도서자인리대어나그해아시수정일보들과있전스제부게구장여상주안원국성조동적우신공유만",
}  # fmt: skip
REST = {
    "zh": range(0x4E00, 0xA000), "ja": range(0x3040, 0xA000), "ko": range(0xAC00, 0xD7A4), "hi mr ne": range(0x900, 0x980),
}  # fmt: skip
FIRST, LAST, COMMON, FEW, OTHERS = 1.0, 0.0, 0.5, 24, 0.2  # weights of letters by their rank in an alphabet
CAPITAL = 0.85  # times the weight of its small letter
SIGNS = dict.fromkeys("–—‘’‚“”„•…«»·°©®™€£§№、。，：；！？「」『』（）・《》ー％．", 0.4)
# Never in a right reading: control characters, unassigned ones, a sign inside a word or half of a word in capitals, two alphabets
# in a word, a Thai mark on no letter.
WRONG = regex.compile(
    r"[\x80-\x84\x86-\x9f\ufffd\p{Cn}\p{Co}]|(?<=\p{L})[\p{S}\p{No}¡¿§¶†‡•‰«»„‚](?=\p{L})|(?<=[^\x00-\x7f])(?<=\p{Ll})\p{Lu}"
    r"|\p{Ll}(?=\p{Lu}(?<=[^\x00-\x7f]))|(?<=[\p{Latin}])[\p{Cyrillic}\p{Greek}\p{Hebrew}\p{Arabic}\p{Thai}]"
    r"|(?<=[\p{Cyrillic}\p{Greek}\p{Hebrew}\p{Arabic}\p{Thai}])\p{Latin}"
    r"|(?<![ก-ฮิ-ู])[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]"
)
WORD_SEPARATORS = re.compile(r"[\x00-@\[-`{-\x7f]+")
MAX_CHARACTERS = 3000  # that are read, in words with characters beyond ASCII


def _weights(letters: str, part: bool) -> dict[str, float]:
    """`part`: the table has the commonest letters only."""
    step = (FIRST - (COMMON if part or len(letters) < FEW else LAST)) / max(1, len(letters) - 1)
    weights = {}
    for rank, letter in enumerate(letters):
        weights.setdefault(letter, FIRST - rank * step)
        if len(letter.upper()) == 1 and letter.upper() > "\x7f":  # that of ı is I
            weights.setdefault(letter.upper(), CAPITAL * weights[letter])
    return SIGNS | weights


TABLES = [(_weights(letters, language in REST), REST.get(language)) for language, letters in ALPHABETS.items()]


def fit(text: str) -> float:
    """How common the characters beyond ASCII are in the language that they fit best, less the share of WRONG ones: from 1 down to
    -1 and less. 0 where there are none."""
    reading = _Reading(text)
    return reading.letters - reading.wrong()


def likeliest(readings: dict[str, str], bonus: dict[str, float]) -> tuple[str | None, float]:
    """The name of the text with the highest sum of fit and the name's bonus, and that sum; of equals the first."""
    scored = {name: _Reading(text) for name, text in readings.items()}
    best, score = None, float("-inf")
    for name, reading in sorted(scored.items(), key=lambda pair: -pair[1].letters - bonus.get(pair[0], 0)):
        upper_bound = reading.letters + bonus.get(name, 0)
        if upper_bound <= score:  # as are the bounds of those that follow
            break
        if upper_bound - reading.wrong() > score:
            best, score = name, upper_bound - reading.wrong()
    return best, score


class _Reading:
    """The scores of a text's letters; `wrong` takes most of the time and is computed only where it matters."""

    def __init__(self, text: str) -> None:
        words = [word for word in WORD_SEPARATORS.split(text) if not word.isascii()]
        self.words = " ".join(words)[:MAX_CHARACTERS]
        counts = Counter(self.words)
        non_ascii = {letter: count for letter, count in counts.items() if letter > "\x7f"}
        self.total = sum(non_ascii.values())
        self.letters = max([_weighted_sum(non_ascii, *table) for table in TABLES]) / self.total if self.total else 0.0

    def wrong(self) -> float:
        return len(WRONG.findall(self.words)) / self.total if self.total else 0.0


def _weighted_sum(counts: dict[str, int], weights: dict[str, float], rest: range | None) -> float:
    known = counts.keys() & weights.keys()
    score = sum([weights[letter] * counts[letter] for letter in known])
    if rest:
        score += OTHERS * sum([count for letter, count in counts.items() if letter not in known and ord(letter) in rest])
    return score
