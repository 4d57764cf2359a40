"""How each published dataset is made again, one module a family."""
