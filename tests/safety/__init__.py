"""Nothing that comes from outside is run, asked for or obeyed."""
