"""The one error that every reader here raises."""


class WeightsError(ValueError):
    """A file that cannot be used: the message names it, what was found, what was expected and what to do."""
