"""One file for each suite; `run` beside this directory finds them by name."""
