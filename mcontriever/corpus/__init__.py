"""Raw text in many languages becomes token shards here, so that training never parses, tokenizes or guesses."""
