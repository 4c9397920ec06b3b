"""What an operator is told: one sentence, and exit code 1."""


class OperatorError(Exception):
    """Something an operator can mend; the text says what is wrong and what to do, and holds no secret."""
