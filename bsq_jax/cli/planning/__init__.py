"""Parts of the command ``plan``: programs of a config, their check, layouts of a mesh."""
