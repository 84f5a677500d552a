"""Reading where a bad line is an error, and pieces make no difference."""

from mcontriever.corpus.readers import BadLine, pieces, read_piece, stream_hub
from mcontriever.errors import DataError


def read_documents(path, field="text", *, language_field="", **options):
    for piece in pieces(path, language_field=language_field, **options):
        yield from strict(read_piece(piece, field=field, language_field=language_field))


def read_hub(*arguments, **options):
    return strict(stream_hub(*arguments, **options))


def strict(items):
    for item in items:
        if isinstance(item, BadLine):
            raise DataError(f"{item.where}: {item.problem}")
        yield item
