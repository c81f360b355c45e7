"""What `detection …` does, one module a command; each returns the text that a person reads."""
