"""What each command does, free of the terminal: plain arguments in, data out."""
