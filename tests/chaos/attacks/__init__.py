"""Attacks on one server's neighbours, a module for each kind; `tests.chaos.neighbours` runs them."""
