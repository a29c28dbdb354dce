"""The exception for bad input to the data programs."""


class DataError(ValueError):
  """Bad data or configuration, in words meant for the person at the terminal.

  Programs print its message without a traceback and exit with code 2.
  """
