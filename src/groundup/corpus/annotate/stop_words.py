"""Stop words: for each language eight that pages of prose have, as Gopher (Rae et al. 2021) names eight English ones.

A page of prose has two of them. Languages that write without spaces, or attach such words to others (Korean), have none
here: the rule does not apply to them.
"""

from groundup.core.words import plain, word_hashes

WORDS = {
    "en": "the be to of and that have with",
    "de": "der die und in zu den das nicht",
    "fr": "de la et le les des que en",
    "es": "de la que el en y los se",
    "it": "di e che la il un per non",
    "pt": "de a o que e do da em",
    "nl": "de het een van en in is dat",
    "ca": "de la i el que en a les",
    "gl": "de a o que e do da en",
    "ro": "de și în a la cu pe că",
    "sv": "och att det i som en på är",
    "da": "og at det i er en til af",
    "no": "og det i er på en som til",
    "nn": "og det i er på ein som til",
    "is": "og að í á er til sem við",
    "pl": "i w na z do się nie to",
    "cs": "a se na v je že s to",
    "sk": "a sa na v je že s to",
    "sl": "in je v na se da za so",
    "hr": "i u je na se da za su",
    "bs": "i u je na se da za su",
    "ru": "и в не на что с как по",
    "uk": "і в на що не з та до",
    "bg": "и на да в се за не от",
    "tr": "ve bir bu için ile da de her",
    "fi": "ja on ei se että ovat tai kuin",
    "et": "ja on ei see et või ka kui",
    "hu": "a az és hogy nem is egy van",
    "el": "και το να του η της την με",
    "lt": "ir į kad su iš yra tai kaip",
    "lv": "un ir uz ar no ka tas par",
    "id": "yang dan di dari untuk dengan ini atau",
    "ms": "yang dan di dari untuk dengan ini atau",
    "vi": "và của là có cho một không được",
    "ar": "في من على أن إلى أو ما لا",
    "fa": "و در به از که این را با",
    "he": "של את על לא כל או עם הוא",
    "hi": "के है में की से और का को",
    "sr": "и у је на се да за су i u je na se da za su",  # in both of its scripts
}
HASHES = {language: word_hashes([plain(word) for word in words.split()]) for language, words in WORDS.items()}
