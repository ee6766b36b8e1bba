"""Text that somebody else may have put into prompts, names, hookpoints and paths: every output is tried with it."""

#: What may hide in a text, by what it would do if it got out as it is.
NASTY = {
    "markup": '<script>alert(1)</script><img src=x onerror="alert(1)">',
    "entities": "&lt;b&gt; &amp;amp; &#x3c;script&#x3e;",
    "attributes": '" onmouseover="alert(1)" \'',
    "comments": "--><!-- ]]> </style></title><script>",
    "templates": "{{ 7*7 }} {% include '/etc/passwd' %} ${7*7} %s {0}",
    "links": "[here](javascript:alert(1)) ![x](http://a.example/x.png) <http://a.example> www.a.example",
    "tables": "a | b | c\n|---|---|\n| d |",
    "headings": "a\n# heading\n\n- item\n\n```\ncode\n```\n<details>",
    "code": "`` ` ``` a ````` `",
    "formulas": "=cmd|' /C calc'!A0",
    "more formulas": "+1+1 @SUM(1) -2+3 \t=1",
    "colours": "\x1b[31mred\x1b[0m \x1b]8;;http://a.example\x07link\x1b]8;;\x07 \x1b[2J \x9b31m",
    "controls": "a\x00b\x07\x08\x0b\x0c\x7f\x85c",
    "returns": "harmless\rhidden\r\nactmap: done",
    "directions": "\u202egnp.exe \u2066a\u2069 \u061c\u200f",
    "widthless": "a\u200bb\u2060c\ufeffd\u00ade\u180ef",
    "tags": "a\U000e0068\U000e0069\U000e007f",
    "breaks": "line\u2028line\u2029line",
    "rich": "[bold red]x[/] [link=http://a.example]y[/link] :warning:",
    "paths": "../../etc/passwd \\\\server\\share file:///etc/passwd",
    "dollars": "$x_1$ \\frac{1}{0} $$",
    "scripts": "👩‍🔬 مرحبا 日本 e\u0301",
    "long": "x" * 5000,
}

#: What may stand in a file's name.
NASTY_NAMES = {
    what: text.replace("/", "_").replace("\0", "")[:60] for what, text in NASTY.items() if what not in {"paths", "long"}
}

#: Characters that a terminal or a browser obeys, or that nobody sees, none of which may get out.
ACTING = frozenset(
    "\x00\x07\x08\x0b\x0c\r\x1b\x7f\x85\x9b\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e"
    "\u2060\u2066\u2067\u2068\u2069\ufeff\u00ad\u180e\U000e0068\U000e007f"
)


def acting(text: str) -> set[str]:
    """Returns what of `ACTING` is in a text."""
    return set(text) & ACTING
