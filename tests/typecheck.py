"""The run-time type checker of the tests: beartype, where an int is a float as it is to mypy."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
