"""HTML from nested calls; what is not Markup is text and is escaped, so that a name can hold anything."""

from __future__ import annotations

from html import escape

VOID = ("meta", "input", "br")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(content: object) -> Markup:
    """Anything as text; Markup stays what it is."""
    return content if isinstance(content, Markup) else Markup(escape(str(content)))


def join(*parts: object, by: str = "") -> Markup:
    """Parts one after the other."""
    return Markup(by.join(text(part) for part in parts))


def tag(name: str, /, *content: object, **attributes: object) -> Markup:
    """An element.

    Args:
        content: text or Markup. attributes: `class_` stands for class, `data_set` for data-set; one that is None or
            False is left out, and one that is True has no value.
    """
    words = [name]
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(attribute)
        elif value is not None and value is not False:
            words.append(f'{attribute}="{escape(str(value))}"')
    opened = Markup(f"<{' '.join(words)}>")
    return opened if name in VOID else Markup(f"{opened}{join(*content)}</{name}>")
