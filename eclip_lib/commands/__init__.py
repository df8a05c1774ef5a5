"""What the command line does: one module a command, called by `cli` and nobody below."""
