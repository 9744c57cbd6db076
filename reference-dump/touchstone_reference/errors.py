"""The one exception for what the user gave: its message names the file or field and what was expected."""


class BadInput(Exception):
    """Bad arguments or a bad file. `__main__` prints it as one line and ends with exit code 2."""
