"How far the lab's table agrees with dictionaries that others made: MUSE (English to each language) and the Open Multilingual Wordnet."

import re
import unicodedata
from collections import Counter, defaultdict

from pypinyin import Style, lazy_pinyin

from xstudy.labtasks import function_words, split_words
from xstudy.languages import lower
from xstudy.scenes import read_lexicon

OMW = {"ar": "wn-data-arb", "bg": "wn-data-bul", "de": "wn-wikt-deu", "hi": "wn-wikt-hin", "ru": "wn-wikt-rus", "sw": "wn-wikt-swa", "tr": "wn-wikt-tur", "zh": "wn-data-cmn"}
EMPTY = {"ADP", "PART", "AUX", "DET"}  # tags of words that carry no meaning of their own


def stem(text, code):
    "A form without what inflects in front, and without marks that dictionaries leave out."
    text = unicodedata.normalize("NFC", "".join(c for c in unicodedata.normalize("NFD", text) if not ("\u064b" <= c <= "\u0652" or c == "\u093c")))
    text = text.replace("أ", "ا").replace("إ", "ا").replace("آ", "ا").replace("ё", "е").replace("ँ", "ं").removesuffix("ة" if code == "ar" else "\0")
    if code == "ar":
        text = text.removeprefix("ال")
        text = text[1:] if len(text) > 3 and text[0] in "يت" else text
    for prefix in ("anam", "ham", "ana", "ha") if code == "sw" else ():
        if text.startswith(prefix) and len(text) > len(prefix) + 2:
            return text[len(prefix) :]
    return text


def alike(a, b, code):
    "Whether two forms are of one word: equal, or with a long common beginning; in Chinese read alike (MUSE writes traditional characters)."
    if code == "zh":
        sound = lambda t: lazy_pinyin(t, style=Style.TONE3)
        a, b = sound(a), sound(b)
        return any(a[i : i + len(b)] == b for i in range(len(a))) or any(b[i : i + len(a)] == a for i in range(len(b)))
    a, b = stem(a, code), stem(b, code)
    if code == "th":
        return a in b or b in a
    n = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return a == b or n >= 3 and n >= 0.55 * max(len(a), len(b)) or n >= 2 and n == min(len(a), len(b)) and abs(len(a) - len(b)) <= 2


def forms(entry, code):
    "The words of an entry, and its phrases without function words."
    empty, out = {w for w, t in function_words(code).items() if t in EMPTY}, set()
    for form, cells in entry.forms.items():
        cell = lower(cells.get(code, ""), code) if form != "class" else ""
        for piece in re.split("[_…]", re.sub("^(dat|abl):|~", "", cell)):
            words = [x for x in split_words(piece.strip(), code) if x not in empty]
            out |= {*words, ("" if code in ("th", "zh") else " ").join(words)}
    return out - {""}


def ours(concept, code):
    "The first form of a concept that a language has."
    cells = (c[code] for e in concepts()[concept] for f, c in e.forms.items() if f != "class" and code in c)
    return next(cells, "")


def concepts():
    "concept -> its entries."
    out = defaultdict(list)
    for e in read_lexicon().values():
        out[e.concept].append(e)
    return out


def against_muse(root, code):
    "(concepts that the dictionary has, those of them whose words it does not know with its own words)"
    table, covered, not_in = defaultdict(set), [], {}
    for line in (root / "lexicons" / "bilingual_en" / f"en-{code}.txt").read_text(encoding="utf-8").splitlines():
        if len(x := line.split()) == 2:
            table[x[0].lower()].add(lower(x[1], code))
    for concept, entries in concepts().items():
        keys = {concept.lower().removeprefix("be-"), {"drinking": "drink", "cleaning": "clean"}.get(concept, "")}
        for e in entries:
            keys |= {w[0] for w in (sorted(forms(type(e)(*e[:-1], {f: {"en": c["en"]}}), "en")) for f, c in e.forms.items() if "en" in c and f != "class") if len(w) == 1}
        theirs = set().union(*(table.get(k, set()) for k in keys))
        if theirs:
            covered.append(concept)
            mine = set().union(*(forms(e, code) for e in entries))
            if not any(alike(a, b, code) for a in mine for b in theirs):
                not_in[concept] = theirs
    return covered, not_in


def wordnets(root):
    "language -> lemma -> synsets."
    out = {}
    for code, name in OMW.items():
        out[code] = defaultdict(set)
        for line in (root / "lexicons" / "omw" / f"{name}.tab").read_text(encoding="utf-8").splitlines():
            x = line.split("\t")
            if len(x) >= 3 and x[1].endswith("lemma"):
                out[code][lower(x[2].replace("_", " ").replace("+", ""), code)].add(x[0])
    return out


def against_omw(nets, code):
    "The same by meaning: synsets that three other languages share for a concept, and this language's lemmas for them."
    lemmas, covered, not_in = defaultdict(set), [], {}
    for lemma, synsets in nets[code].items():
        for s in synsets:
            lemmas[s].add(lemma)
    for concept, entries in concepts().items():
        votes = Counter()
        for other in set(OMW) - {code}:
            mine = {stem(x, other) if other == "ar" else x for e in entries for x in forms(e, other)}
            votes.update(set().union(*(nets[other].get(m, set()) for m in mine)))
        theirs = set().union(*(lemmas[s] for s, n in votes.items() if n >= 3))
        if theirs:
            covered.append(concept)
            if not any(alike(a, b, code) for e in entries for a in forms(e, code) for b in theirs):
                not_in[concept] = theirs
    return covered, not_in
