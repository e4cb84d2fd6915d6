"""Pages without content: errors, forms to log in, searches without results, notices that ask for JavaScript or cookies, and pages
that are nothing but a menu.

Their phrases are known in two dozen languages. A long text with them, as of a page about such errors, is content.
"""

import re

from groundup.core.words import count
from groundup.corpus.extract.blocks import Blocks

ERROR_TEXT = re.compile(
    r"\b(?:error|http|fehler|erreur|errore|hata|błąd|ошибка)[\s:]*(?:40\d|410|429|50[0-4])\b"
    r"|^\W*(?:40\d|410|429|50[0-4])\W*(?:$|[-–—|:,]|(?:not found|forbidden|error|page|bad|service|internal|fehler|erreur)\b)"
    r"|\b(?:page|file|document|content)\s(?:(?:was|is|could)\s)?(?:not|cannot|can['’]t)(?:\sbe)?\sfound\b"
    r"|\bpage (?:does(?:n['’]t| not) exist|unavailable|not available)|\baccess (?:to this page )?(?:has been )?denied"
    r"|^just a moment|^attention required!|\bare you (?:a )?(?:human|robot)|\bverify(?:ing)? (?:that )?you are (?:a )?human"
    r"|\brobot check\b|^checking your browser"
    r"|\b(?:site|website|we are|page) (?:is )?(?:currently )?under (?:maintenance|construction)"
    r"|\bseite (?:wurde )?(?:leider )?nicht (?:gefunden|verfügbar)|\b(?:diese )?seite (?:gibt es|existiert) (?:leider )?nicht"
    r"|\bzugriff verweigert|\bwartungsarbeiten"
    r"|\bpage (?:non trouvée|introuvable|inexistante)|\bpage n['’]existe pas|\baccès refusé|\bsite en maintenance"
    r"|\bp[aá]gina no (?:se ha )?(?:encontrada|existe|encontrado)|\bencontrar esa página|\bacceso denegado|\ben mantenimiento"
    r"|\bpágina (?:não|nao) (?:encontrada|existe)|\bpagina (?:non trovata|non esiste|inesistente)|\baccesso negato"
    r"|\bpagina (?:kon )?niet (?:gevonden|worden gevonden|beschikbaar)|\bsidan (?:hittades inte|kunde inte hittas|finns inte)"
    r"|\bsiden (?:(?:ble|blev) ikke fun[dn]et|fin[dn]es ikke)|\bsivua ei löyd"
    r"|nie znaleziono strony|\bstrona (?:nie (?:została znaleziona|istnieje)|nieznaleziona)|\bstrony nie (?:ma|znaleziono)"
    r"|страниц[аы] не (?:найдена|существует)|страницы (?:нет|не существует)|такой страницы нет|доступ запрещ"
    r"|сторінк[аи] не знайдено"
    r"|stránka (?:nebyla nalezena|nenalezena|neexistuje|sa nenašla)|az oldal nem található|pagina nu a fost găsită"
    r"|\bsayfa (?:bulunamadı|mevcut değil)|η σελίδα δεν (?:βρέθηκε|υπάρχει)|הדף לא נמצא|halaman tidak ditemukan"
    r"|الصفحة (?:غير موجودة|المطلوبة)|العثور على (?:هذه )?الصفحة|không tìm thấy trang|ไม่พบหน้า"
    r"|页面不存在|(?:找不到|未找到)(?:该|此)?(?:页面|網頁|頁面)|ページ[はが](?:存在しません|見つかりません)"
    r"|페이지를 찾을 수 없|존재하지 않는 페이지",
    re.IGNORECASE,
)


def _alone(*names: str) -> re.Pattern[str]:
    """One of these names alone, or next to the name of the site."""
    side = r"\s*(?:[-–—|:·»/]|$)"
    to = r"(?:\s+(?:to|into|on|in|with|bei|zu|à|en|na|do|в|su|al|tu|your)\b.{0,40}|\s*(?:您的账户|アカウントに.{0,9}))?"
    return re.compile(rf"(?:^|[-–—|:·»/])\W*(?:{'|'.join(names)}){to}{side}", re.IGNORECASE)


FORM = _alone(
    r"log ?[io]n", r"sign ?in", r"sign ?up", r"register", r"registration", r"create (?:an |your )?account",
    r"(?:forgot(?:ten)?|reset) (?:your )?password", r"anmelde(?:n|ung)", r"einloggen", r"registrier(?:en|ung)",
    r"passwort vergessen\??", r"connexion", r"se connecter", r"identification", r"s['’]inscrire", r"mot de passe oublié\W?",
    r"inici(?:ar?|a) sesi[óo]n", r"acceder", r"iniciar sessão", r"entrar", r"fazer login", r"accedi", r"inloggen", r"logga in",
    r"logg inn", r"log ind", r"kirjaudu(?: sisään)?", r"logowanie", r"zaloguj(?: się)?", r"přihlá(?:šení|sit se)", r"prihlás\w+",
    r"bejelentkezés", r"autentificare", r"prijava", r"σύνδεση", r"вход", r"войти", r"вхід", r"увійти", r"giriş(?: yap)?",
    r"oturum aç", r"تسجيل الدخول", r"כניסה", r"התחברות", r"登[录錄入]", r"ログイン", r"サインイン", r"로그인", r"เข้าสู่ระบบ",
    r"đăng nhập", r"masuk",
)  # fmt: skip
INDEX = _alone(
    r"(?:all )?tags?", r"tag cloud", r"schlag(?:wörter|worte?)", r"stichwort\w*", r"mots[- ]clés", r"etiquetas", r"tagi",
    r"теги", r"метки", r"标签", r"標籤", r"タグ(?:一覧)?", r"etiketler", r"(?:ال)?وسوم", r"site ?map", r"inhaltsübersicht",
    r"plan du site", r"mapa (?:del sitio|do site|strony)", r"карта сайта", r"サイトマップ", r"网站地图",
)  # fmt: skip
SEARCH = re.compile(
    r"\bsearch results?\b|\bresults? for\b|\bsuchergebnis|\bsuche nach\b|\brésultats? (?:de (?:la )?recherche|pour)"
    r"|\bresultados (?:de (?:la )?búsqueda|da (?:busca|pesquisa)|para)|\brisultati (?:della |di )?ricerca|\bzoekresultaten"
    r"|\bsökresultat|\bwyniki wyszukiwania|\bvýsledky (?:vy)?hled|результаты поиска|результати пошуку|arama sonuç"
    r"|نتائج البحث|搜[索尋]结?結?果|検索結果|검색 ?결과|kết quả tìm kiếm",
    re.IGNORECASE,
)
SCRIPT = re.compile(
    r"^(?=.*javascript).*(?:enabl|activ|aktiv|habilit|abilita|włącz|включ|увімк|zapn|povol|engedély|ενεργοπ|schakel|aanzet"
    r"|slå på|etkin|turn(?:ed)? (?:it )?on|requires?\b|benötigt|erforderlich|nécessite|requiere|richiede|wymaga"
    r"|необходим|требуется"
    r"|启用|開啟|开启|啟用|有効|활성|켜|تفعيل|تمكين|bật|เปิด)",
    re.IGNORECASE | re.MULTILINE,
)
COOKIES = ("cookie", "çerez", "ciastecz", "куки", "ملفات تعريف", "쿠키", "evästei", "süti", "kolačić", "кукі")
OF_COOKIES = [  # topics of a notice on cookies, which has at least two of them
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"partner|\bsocios\b|parceir|партн|合作|パートナー|ortağ|شركا",
        r"\bdevice|gerät|\bappareil|dispositiv|urządz|устройств|设备|裝置|デバイス|cihaz|الجهاز",
        r"personal|personenbez|données|osobow|персон|个人|個人|kişisel|شخصي",
        r"consen|einwillig|zustimm|zgod|соглас|同意|rıza|onay|موافق",
        r"accept|akzept|accett|acepta|aceita|akcept|kabul|قبول|choice|auswahl|choix|opciones|scelte|wybór|выбор"
        r"|选择|選択|tercih|خيار",
        r"privacy|datenschutz|privatsph|confidentialité|vie privée|privacidad|prywatn|конфиденц"
        r"|隐私|隱私|プライバシー|gizlilik|خصوصي",
        r"\bads?\b|advert|werbung|anzeigen|publicit|publicidad|anunci|pubblicit|annunci|reklam|реклам|广告|廣告|広告|إعلان",
    )
]
HEADING_TAGS = frozenset(["h1", "h2", "h3", "h4", "h5", "h6"])
HEADINGS = 3  # blocks of <h1> that are read
LONGEST_TITLE = 90  # characters
MUCH, LONG = 80, 12  # words in blocks of LONG words or more, from which on the page has content
SMALL = 3000  # characters of chosen text: a page with more is more than notices and a menu
NOTICE = 150  # words that a notice has at most
MENU, FEW = 60, 3  # a menu has fewer than MENU words, and outside of links no block of more than FEW


def is_error_page(blocks: Blocks) -> bool:
    """Whether the title or a heading names an error, a form to log in or a search, and there is little other text."""
    if not any(ERROR_TEXT.search(title) or FORM.search(title) or SEARCH.search(title) for title in _titles(blocks)):
        return False
    return sum(size for size in map(count, _prose(blocks, range(len(blocks.text)))) if size >= LONG) < MUCH


def is_bare(blocks: Blocks, chosen: list[int]) -> bool:
    """Whether the chosen blocks are nothing but notices, a menu, or an index of words."""
    if sum(len(blocks.text[block]) for block in chosen) > SMALL:
        return False
    remaining = [block for block in chosen if not _is_notice(blocks.text[block])]
    sizes = [count(text) for text in _prose(blocks, remaining)]
    longest, words = max(sizes, default=0), sum(count(blocks.text[block]) for block in remaining)
    if longest < LONG and any(map(INDEX.search, _titles(blocks))):
        return True
    if len(remaining) < len(chosen):
        return longest < LONG and words < MENU
    return longest <= FEW and words < MENU and not any(_tag(blocks, block) in HEADING_TAGS for block in remaining)


def _titles(blocks: Blocks) -> list[str]:
    headings = [text for block, text in enumerate(blocks.text) if _tag(blocks, block) == "h1"]
    return [title[:LONGEST_TITLE] for title in (blocks.title, *headings[:HEADINGS])]


def _tag(blocks: Blocks, block: int) -> str:
    return blocks.kinds[blocks.kind[blocks.element[block]]].name


def _prose(blocks: Blocks, chosen: range | list[int]) -> list[str]:
    """The texts of the chosen blocks that are not mostly links."""
    return [blocks.text[block] for block in chosen if 2 * blocks.link_chars[block] < len(blocks.text[block])]


def _is_notice(text: str) -> bool:
    lowered = text.lower()
    says = "javascript" in lowered and SCRIPT.search(text) is not None
    if not says and any(map(lowered.__contains__, COOKIES)):
        says = sum(pattern.search(text) is not None for pattern in OF_COOKIES) >= 2
    return says and count(text) <= NOTICE
