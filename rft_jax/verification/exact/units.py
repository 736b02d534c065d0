"""The closed lists of words that may stand beside a number without changing what it says.

A unit is a measure (`km/h`, `m s^{-1}`, `cm^2`), a counted thing in the plural (`clips`, `red
clips`), or one of these with what they are of (`slices of pizza`). Words that scale, divide, deny
or hedge (`dozens`, `halved`, `below zero`) are none, nor is any other.
"""

from __future__ import annotations

import re


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


ATTACHED = words(
    "km cm mm dm nm mi ft in yd kg mg lb lbs oz ml mL cL dL hr hrs min mins sec secs ms mph kph "
    "kmh kWh kPa Hz kHz MHz GHz MB GB kB °C °F ° USD EUR GBP cents dollars st nd rd th"
)
"""Units that may touch their number: `5cm`, but `5 m`, since `5m` is a product."""
LETTERS = words("m g s h L l N W V J A C F")
"""Units after a number and a space, or in `\\text{}` after one. Not K, which may be a thousand."""
_MEASURES = ATTACHED - words("st nd rd th") | words(
    "meter metre kilometer kilometre centimeter centimetre millimeter millimetre inch inches foot "
    "feet yard mile gram kilogram milligram pound ounce ton tonne liter litre milliliter gallon "
    "quart pint cup tablespoon teaspoon tbsp tsp second minute hour day week month year decade "
    "century centuries sq cu square cubic fluid fl degree deg celsius fahrenheit kelvin radian rad "
    "dollar cent penny pence euro rupee yen yuan peso ruble franc won INR CNY RMB JPY unit knot hz "
    "hertz newton joule watt volt ampere amp ohm pascal calorie kcal cal mole mol bit byte pixel "
    "acre hectare ha au ly hp psi atm eV keV MeV people person man men woman women child children "
    "mouse mice goose geese tooth teeth sheep fish deer cattle foot-pound rpm fps bpm wpm µm μm Ω "
    "lumen candela student point percentage way person-hour man-hour year-old money profit water "
    "weight food milk"
)
_LINKS = words("of per a an the each every in for by to with on at from than")
"""What leads from a unit to what it is of; what follows is not looked at but for `NO_UNITS`."""
NUMBER_WORDS = words(
    "zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "hundred thousand million billion trillion dozen half halves third thirds fourths fifths "
    "sixths sevenths eighths ninths tenths hundredths thousandths"
)  # they state another number
NO_UNITS = NUMBER_WORDS | words(
    "one tens dozens scores score twenties hundreds thousands millions billions trillions lakh "
    "lakhs crore crores gross grosses myriad myriads grand couple couples single singles double "
    "doubles triple triples quadruple twice thrice fourth fifth sixth seventh eighth ninth tenth "
    "quarter quarters hundredth thousandth millionth millionths fold or nor not no maybe perhaps "
    "possibly probably approximately approx about around roughly nearly almost plus minus times "
    "over under above below greater least most except without but if when "
    "unless divided multiplied reduced increased squared cubed factorial mod modulo modulus choose "
    "point negative positive opposite inverse reciprocal reciprocals powers roots multiples e pi i "
    "sqrt sin cos tan log logs ln exp infinity inf nan wrong incorrect false unknown is are was "
    "were has had this as equals equal remainder remainders base bases then halved doubled "
    "tripled something odd even percents bps basis mille"
)
"""Words that change what a number says, or state an alternative or a denial."""

_LEADS = words("more fewer less additional extra other total")
"""What may stand before what is counted, but not alone: `12 more apples`, not `12 more`."""
_TAILS = _LEADS | words(
    "old tall long wide high deep thick apart left remaining today now all each altogether over "
    "older younger taller shorter longer faster slower farther further cheaper heavier higher "
    "lower earlier later ago away combined overall remain remained live work came went passed"
)
_CHANGING = re.compile(r"(?!(?:months|baths|paths|births)$).*ths|.*(?:illions?|fold)")
_SINGULAR = re.compile(r"[a-z]{2,}(?:-[a-z]+)*")
_PLURAL = re.compile(r"(?!.*(?:ss|us|is)$)[A-Za-z]?[a-z'’-]{2,}s")
_WORD = r"[A-Za-zµμΩ°Å]+(?:['’-][A-Za-z]+)*"
_POWER = r"(?:\^?\{?-?[1-4]\}?|[²³]|⁻[¹²³])"
_PHRASE = re.compile(rf"(?:{_WORD}\.?{_POWER}?(?:[ ]*[/·*][ ]*|[ ]+|$)){{1,7}}")
# Chinese, Japanese and Korean counters, and up to four characters of what they count.
_COUNTER = (
    "个|個|元|円|圆|块|塊|角|美元|欧元|本|张|張|枚|人|名|位|岁|歳|年|个月|月|日|天|周|小时|小時|時間|"
    "分钟|分鐘|分|秒|米|公里|厘米|毫米|公斤|克|斤|吨|升|毫升|平方米|平方厘米|立方米|立方厘米|件|次|回|"
    "条|只|隻|匹|头|頭|辆|輛|台|页|頁|支|枝|杯|瓶|箱|袋|盒|颗|顆|粒|朵|棵|座|间|間|层|位|篇|道|题|份|组|"
    "種|种|度|개|명|살|년|일|시간|분|번|마리|권|장|원|미터|cm|kg"
)
_CJK = re.compile(
    rf"(?:{_COUNTER})[^\W\d_零〇一二三四五六七八九十百千万萬亿億兆半两兩双雙倍负負点點又或多余餘减減加乘除]{{0,4}}"
)


def is_unit(text: str, attached: bool = False) -> bool:
    """Whether a phrase says only what a number counts; `attached` where it touches the number."""
    text = text.strip(" -")
    if not text.isascii() and _CJK.fullmatch(text):
        return True
    if text[:1] == "/" and len(text) > 2:  # 12/day
        text, attached = text[1:].lstrip(), False
    found = re.findall(_WORD, text) if _PHRASE.fullmatch(text) else []
    if not found or text.startswith("per cent") or (attached and found[0] not in ATTACHED):
        return False
    parts = [part for word in found for part in re.split("['’-]", word)]
    if not NO_UNITS.isdisjoint(map(str.casefold, (*found, *parts))):
        return False
    if any(_CHANGING.fullmatch(word) and not is_measure(word) for word in found):
        return False
    return _says_what(found)


def _says_what(found: list[str]) -> bool:
    """Whether words are measures, or one word and a plural, up to a link and what it leads to."""
    first, *rest = found
    if first in _LEADS and rest:
        first, *rest = rest
    if first == "and":
        return False
    if first in _LINKS and rest:  # 12 per day, 12 a day, 12 in all, 12% of them
        single = first in ("per", "a", "an", "each", "every") and _SINGULAR.fullmatch(rest[0])
        return bool(single) or first == "of" or _says_what(rest)
    named = rest and _SINGULAR.fullmatch(first) and _heads(rest[0])
    if not named and not _heads(first):
        return False
    for at, word in enumerate(rest, 1):
        if word in _LINKS and at < len(rest):
            return True
        if word == "and" and at < len(rest) and _PLURAL.fullmatch(rest[at]):
            continue
        if not _heads(word) and word not in _TAILS:
            return False
    return True


def _heads(word: str) -> bool:
    return is_measure(word) or bool(_PLURAL.fullmatch(word))


def is_measure(word: str) -> bool:
    """Whether a word is a measure of the list, its plural or capitals included."""
    small = word.casefold()
    return word in LETTERS or not {
        word,
        small,
        small[:-1] if small.endswith("s") else small,
    }.isdisjoint(_MEASURES)
