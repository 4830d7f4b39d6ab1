"""The small trainer behind the command line: model, data, loop, recipes, cli."""
