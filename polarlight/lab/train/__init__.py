"""Trainer behind the command line: model, data, loop, recipes."""
