"""Which language is a text in? By script, in Latin script by frequent words: a statistic, no classifier."""

from __future__ import annotations

import re
from collections import Counter

_SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af]")),
    ("zh", re.compile(r"[\u4e00-\u9fff]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
)
_FREQUENT = {
    "en": "the of and to in is that for it with as was on are be this you have what how many if she he not "
    "why who when where which can do does did by from or an i we they",
    "es": "de la que el en los se del las un por con una su para es al lo como cuántos no más pero qué cuál",
    "fr": "de la le et les des en un du une que est pour qui dans par plus pas au combien ne ce il elle sur",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine wie was ich sie er",
    "pt": "de que e do da em um para é com não uma os no se na por mais as quantos ao ele das",
    "it": "di che e la il un a per è in una mi sono ho non ma lo ha le si quanti del della",
}
_WORDS = {name: frozenset(words.split()) for name, words in _FREQUENT.items()}
_WORD = re.compile(r"[a-zà-öø-ÿ]+")
_LOOK = 2000  # characters are enough to tell, and keep long documents cheap


def language_of(text: str) -> str:
    """A language code, "latin" for an unknown language in Latin script, "none" for text without letters.

    A non-Latin script decides when it makes up more than a fifth of the letters, because code, names and
    numbers in such texts are Latin. Kana decides for Japanese before Han does for Chinese.
    """
    text = text[:_LOOK].lower()
    words = _WORD.findall(text)
    latin = sum(map(len, words))
    if not text.isascii():
        counts = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS}
        other = sum(counts.values())
        if other and other > 0.2 * (latin + other):
            if counts["ja"] > 0.05 * other:
                return "ja"
            return max(counts, key=lambda name: counts[name])
    if not latin:
        return "none"
    seen = Counter(words)
    scores = {name: sum(seen[word] for word in common) for name, common in _WORDS.items()}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] >= max(1, 0.08 * len(words)) else "latin"
