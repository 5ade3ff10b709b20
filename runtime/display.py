"""Text of the user's where there is little room: on one line, in a table, beside a picture.

In: a text, a width. Out: a text that fits. Independent of: what the text is, where it is shown.
"""

import re
import unicodedata

FEW_CLASSES = 12  # whose confusion matrix fits a terminal and has legible numbers in a picture
WIDEST = 40  # letters of a class name in a table


def printable(text: str) -> str:
    """Without characters that neither HTML nor XML may have: NUL, control characters, half a
    surrogate pair. A replacement character stands for each."""
    return re.sub("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def shorten(text: str, width: int) -> str:
    """One line of at most `width` narrow letters; a letter of Chinese is as wide as two."""
    text = " ".join(printable(text).split())
    if letters_wide(text) <= width:
        return text
    while text and letters_wide(text) > width - 1:
        text = text[:-1]
    return text + "…"


def shorten_middle(text: str, width: int) -> str:
    """Like `shorten`, with the end kept: names of classes often begin alike."""
    text = " ".join(printable(text).split())
    if letters_wide(text) <= width:
        return text
    end = shorten(text[::-1], width // 2)[-2::-1]
    return shorten(text, width - letters_wide(end)) + end


def letters_wide(text: str) -> int:
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))
