"""Answers of many kinds for `benchmarks.verifier_hunt`: values, and texts that say them."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

Chance = random.Random
Value = Any
listed = str.split
MONTHS = listed(
    "January February March April May June July August September October November December"
)
WORDS = listed(
    "cat act was saw no on evil live stop pots Tom Ann Monday Tuesday even odd yes true false "
    "IV VI XL LX IX XI MC CM ABC CAB AB BA red blue circle ellipse parabola none tea eat"
)


class Kind(NamedTuple):
    """Values of one kind: how one is drawn, changed into another, and spelled."""

    draw: Callable[[Chance], Value]
    change: Callable[[Value, Chance], Value]
    spell: Callable[[Value, Chance], str]


def latex(number: Fraction) -> str:
    """A fraction in LaTeX."""
    sign = "-" if number < 0 else ""
    over, under = abs(number.numerator), number.denominator
    return f"{sign}{over}" if under == 1 else rf"{sign}\frac{{{over}}}{{{under}}}"


def rational(chance: Chance) -> Fraction:
    """A number as answers have it: mostly whole and small."""
    whole = chance.choice((9, 30, 999, 99999)) if chance.random() < 0.9 else 10**9
    number = Fraction(chance.randint(-whole // 4, whole))
    return number / chance.choice((2, 3, 4, 5, 7, 8, 12, 100)) if chance.random() < 0.4 else number


def other_rational(value: Fraction, chance: Chance) -> Fraction:
    """Another number: a digit, the sign, the parts of a fraction, a power of ten."""
    digits = list(str(abs(value.numerator)))
    at = chance.randrange(len(digits))
    ways = [
        -value, value + 1, value - 1, value * 10, value / 10, 1 / value if value else value + 2,
        value + Fraction(1, 100), Fraction(int("".join(digits[::-1])), value.denominator),
        Fraction(int("".join([*digits[:at], str(chance.randint(0, 9)), *digits[at + 1 :]])),
                 value.denominator),
    ]  # fmt: skip
    return chance.choice([way for way in ways if way != value])


def spell_rational(value: Fraction, chance: Chance) -> str:
    """A number in one of its notations."""
    over, under = value.numerator, value.denominator
    texts = [latex(value), latex(value).replace("frac", "dfrac"), f"{over}/{under}" * (under > 1)]
    if under == 1:
        texts += [f"{over:,}", f"{over}.0", f"{over:,}".replace(",", "{,}"), f"{over + 3} - 3"]
        texts += [rf"\frac{{{2 * over}}}{{2}}", f"{over}".replace("-", "−"), f"{{{over} \\over 1}}"]
        texts += [f"{over:,}".replace(",", r"\,")] if abs(over) > 9999 else []
    elif value > 1:
        texts += [rf"{over // under}\frac{{{over % under}}}{{{under}}}"]
    if 10**6 % under == 0:
        texts += [f"{over * 10**6 // under / 10**6:.6f}".rstrip("0")] if abs(value) < 10**6 else []
    if under > 1:
        texts += [rf"\nicefrac{{{over}}}{{{under}}}", f"{{{over} \\over {under}}}"]
    return chance.choice([text for text in texts if text])


def surd(chance: Chance) -> Value:
    """(a, b, c) of a + b sqrt(c), b not 0 and c squarefree."""
    return (
        chance.randint(-9, 9),
        chance.choice((-3, -2, -1, 1, 2, 5)),
        chance.choice((2, 3, 5, 7)),
    )


def spell_surd(value: Value, chance: Chance) -> str:
    a, b, c = value
    square = b * b * c
    root = chance.choice([
        rf"{b}\sqrt{{{c}}}", ("-" if b < 0 else "") + rf"\sqrt{{{square}}}", f"{b}√{c}",
        f"{b}*sqrt({c})", rf"{b}\sqrt {c}", rf"\frac{{{2 * b}\sqrt{c}}}{{2}}",
    ])  # fmt: skip
    if not a:
        return root
    return chance.choice([f"{a}+{root}".replace("+-", "-"), f"{root}+{a}".replace("+-", "-")])


def replaced(value: Value, chance: Chance, draw: Callable[[Chance], Value]) -> Value:
    """The value with one of its parts drawn again, or two of them in each other's place."""
    parts = list(value)
    if chance.random() < 0.5:
        first, second = chance.sample(range(len(parts)), 2)
        parts[first], parts[second] = parts[second], parts[first]
    else:
        parts[chance.randrange(len(parts))] = draw(chance)
    return tuple(parts)


def redrawn(draw: Callable[[Chance], Value]) -> Callable[[Value, Chance], Value]:
    """A change that draws again."""
    return lambda value, chance: draw(chance)


def small(chance: Chance) -> Fraction:
    """A number between -9 and 20, now and then a fraction."""
    return Fraction(chance.randint(-9, 20), chance.choice((1, 1, 1, 2, 3)))


def several(chance: Chance) -> Value:
    """A tuple of two to four numbers."""
    return tuple(small(chance) for _ in range(chance.randint(2, 4)))


def multiset(chance: Chance) -> Value:
    """A sorted tuple of numbers, repetitions included."""
    return tuple(sorted(several(chance)))


def shuffled(value: Value, chance: Chance) -> list[str]:
    texts = [spell_small(part, chance) for part in value]
    chance.shuffle(texts)
    return texts


def spell_small(value: Fraction, chance: Chance) -> str:
    return chance.choice([latex(value), str(value)])


def spell_list(value: Value, chance: Chance) -> str:
    joints = (",", ", ", r" \text{ and } ", "; ", " or ")  # `5 or 5` is 5
    joint = chance.choice(joints if len(set(value)) > 1 else joints[:-1])
    return joint.join(shuffled(value, chance))


def spell_tuple(value: Value, chance: Chance) -> str:
    inner = ", ".join(spell_small(part, chance) for part in value)
    return chance.choice([f"({inner})", rf"\left({inner}\right)", rf"\langle {inner}\rangle"])


def interval(chance: Chance) -> Value:
    """(low, high, whether each is in), not open at both ends."""
    low = small(chance)
    has_low = chance.random() < 0.5
    return (low, low + chance.randint(1, 9), has_low, not has_low or chance.random() < 0.5)


def change_interval(value: Value, chance: Chance) -> Value:
    low, high, has_low, has_high = value
    return chance.choice([
        (low + 1, high + 1, has_low, has_high), (low, high + 1, has_low, has_high),
        (low, high, not has_low, has_high), (low, high, has_low, not has_high),
        (-high, -low, has_low, has_high), (low, high, has_high, has_low),
    ])  # fmt: skip


def spell_interval(value: Value, chance: Chance) -> str:
    low, high, has_low, has_high = value
    below, above = (r"\le " if has else "<" for has in (has_low, has_high))
    a, b = latex(low), latex(high)
    brackets = f"{'[' if has_low else '('}{a}, {b}{']' if has_high else ')'}"
    over = r"\ge " if has_low else ">"
    return chance.choice([
        brackets, rf"x \in {brackets}", f"{a}{below}x{above}{b}",
        rf"x{over}{a} \text{{ and }} x{above}{b}",
    ])  # fmt: skip


def polynomial(chance: Chance) -> Value:
    """Coefficients by falling power, the first not 0."""
    return (chance.choice((1, 2, 3, -1)), *(chance.randint(-9, 9) for _ in range(2)))


def spell_polynomial(value: Value, chance: Chance) -> str:
    terms = [
        f"{number}{power}" for number, power in zip(value, ("x^2", "x", ""), strict=True)
        if number
    ]  # fmt: skip
    chance.shuffle(terms)
    text = "+".join(terms).replace("+-", "-")
    return chance.choice([text, text.replace("x^2", "x^{2}"), text.replace("x^2", r"x\cdot x")])


def matrix(chance: Chance) -> Value:
    """Four entries."""
    return tuple(chance.randint(-9, 9) for _ in range(4))


def spell_matrix(value: Value, chance: Chance) -> str:
    inner = r"{} & {} \\ {} & {}".format(*value)
    shape = chance.choice(("pmatrix", "bmatrix"))
    return chance.choice([
        rf"\begin{{{shape}}}{inner}\end{{{shape}}}",
        rf"\left(\begin{{smallmatrix}}{inner}\end{{smallmatrix}}\right)",
        rf"\left[\begin{{array}}{{cc}}{inner}\end{{array}}\right]",
    ])  # fmt: skip


def system(chance: Chance) -> Value:
    """Values of x and y."""
    return (small(chance), small(chance))


def spell_system(value: Value, chance: Chance) -> str:
    x, y = (spell_small(part, chance) for part in value)
    return chance.choice([
        f"x={x},y={y}", f"({x},{y})", rf"x={x} \text{{ and }} y={y}", f"(x,y)=({x},{y})",
        rf"\begin{{cases}}x={x}\\y={y}\end{{cases}}", f"y={y}, x={x}",
    ])  # fmt: skip


def based(chance: Chance) -> Value:
    """Digits and their base."""
    base = chance.randint(2, 9)
    digits = "".join(str(chance.randrange(base)) for _ in range(chance.randint(2, 6)))
    return digits.lstrip("0") or "1", base


def spell_based(value: Value, chance: Chance) -> str:
    digits, base = value
    word = listed("zero one two three four five six seven eight nine")[base]
    return chance.choice([
        f"{digits}_{base}", f"{digits}_{{{base}}}", f"({digits})_{base}",
        rf"{digits}_{{\text{{{word}}}}}",
    ])  # fmt: skip


def date(chance: Chance) -> Value:
    """Year, month, day."""
    return (chance.randint(1980, 2030), chance.randint(1, 12), chance.randint(1, 28))


def change_date(value: Value, chance: Chance) -> Value:
    year, month, day = value
    return chance.choice([
        (year, day if day <= 12 else month % 12 + 1, month), (year + 1, month, day),
        (year, month, day % 28 + 1), (year, month % 12 + 1, day),
    ])  # fmt: skip


def spell_date(value: Value, chance: Chance) -> str:
    year, month, day = value
    name = MONTHS[month - 1]
    return chance.choice([
        f"{year}-{month:02}-{day:02}", f"{name} {day}, {year}", f"{day} {name} {year}",
        rf"\text{{{name} {day}, {year}}}",
    ])  # fmt: skip


def clock(chance: Chance) -> Value:
    """Minutes after midnight."""
    return chance.randrange(1440)


def change_clock(value: Value, chance: Chance) -> Value:
    return (int(str(value)) + chance.choice((720, 60, 1, 30))) % 1440


def spell_clock(value: Value, chance: Chance) -> str:
    hour, minute = divmod(int(str(value)), 60)
    mark = chance.choice(
        ("a.m.", "AM", r"\text{ a.m.}") if hour < 12 else ("p.m.", "PM", r"\text{ p.m.}")
    )
    return f"{hour % 12 or 12}:{minute:02} {mark}"


def pair(chance: Chance) -> Value:
    """Two whole numbers, unlike each other."""
    return tuple(chance.sample(range(1, 40), 2))


def shifted(value: Value, chance: Chance) -> Value:
    """Two numbers with the same difference, or the same ratio, or turned."""
    a, b = value
    return chance.choice([(a + 1, b + 1), (b, a), (a, b + 1), (a + b, b)])


def spell_score(value: Value, chance: Chance) -> str:
    return chance.choice(("{}-{}", "{}–{}", r"{}\text{{-}}{}", r"\text{{{}-{}}}")).format(*value)


def spell_ratio(value: Value, chance: Chance) -> str:
    return chance.choice(("{}:{}", "{} : {}", r"{}\text{{ to }}{}")).format(*value)


def measure(chance: Chance) -> Value:
    """Hours and minutes."""
    return (chance.randint(1, 12), chance.randint(1, 59))


def spell_measure(value: Value, chance: Chance) -> str:
    hours, minutes = value
    return chance.choice([
        rf"{hours}\text{{ hours }}{minutes}\text{{ minutes}}", f"{60 * hours + minutes} minutes",
        f"{hours} hr {minutes} min", f"{hours} hours and {minutes} minutes",
    ])  # fmt: skip


def spell_word(value: Value, chance: Chance) -> str:
    return chance.choice([str(value), rf"\text{{{value}}}", rf"\textbf{{{value}}}"])


def spell_choice(value: Value, chance: Chance) -> str:
    forms = (
        "{}",
        "({})",
        r"\text{{({})}}",
        r"\textbf{{({})}}",
        "{})",
        "Option {}",
        "{}. the result",
    )
    return chance.choice(forms).format(value)


def letter(chance: Chance) -> Value:
    """An option."""
    return chance.choice("ABCDE")


def word(chance: Chance) -> Value:
    """A word."""
    return chance.choice(WORDS)


KINDS: dict[str, Kind] = {
    "number": Kind(rational, other_rational, spell_rational),
    "surd": Kind(surd, lambda v, c: replaced(v, c, lambda d: d.choice((2, 3, 5, 7))), spell_surd),
    "list": Kind(multiset, lambda v, c: tuple(sorted(replaced(v, c, small))), spell_list),
    "tuple": Kind(several, lambda v, c: replaced(v, c, small), spell_tuple),
    "interval": Kind(interval, change_interval, spell_interval),
    "polynomial": Kind(
        polynomial, lambda v, c: replaced(v, c, lambda d: d.randint(1, 9)), spell_polynomial
    ),
    "matrix": Kind(matrix, lambda v, c: replaced(v, c, lambda d: d.randint(-9, 9)), spell_matrix),
    "system": Kind(system, lambda v, c: replaced(v, c, small), spell_system),
    "based": Kind(based, redrawn(based), spell_based),
    "date": Kind(date, change_date, spell_date),
    "clock": Kind(clock, change_clock, spell_clock),
    "score": Kind(pair, shifted, spell_score),
    "ratio": Kind(pair, shifted, spell_ratio),
    "measure": Kind(
        measure, lambda v, c: replaced(v, c, lambda d: d.randint(1, 12)), spell_measure
    ),
    "word": Kind(word, redrawn(word), spell_word),
    "choice": Kind(letter, redrawn(letter), spell_choice),
}
