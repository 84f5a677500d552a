"""What the tests here prepare: words to make text of, rows written to files, and the settings they all share."""

import gzip
import json

from mcontriever.corpus import PrepareSettings

WORDS = "river mountain lake bridge tower garden market harbour castle forest desert island valley meadow".split()


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def asked(corpus, tokenizer, out, **changes):
    return PrepareSettings(corpus=str(corpus), out=str(out), tokenizer=tokenizer, **changes)
