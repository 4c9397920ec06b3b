"""Text of callers and files as it may be shown to people."""


def escape_unprintable(text: str) -> str:
    r"""Returns ``text`` with characters that end a line, or that a terminal obeys, written as ``\n`` or ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
