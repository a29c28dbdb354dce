"""Numbers and tables for people to read."""

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Aligned columns; the first to the left, the others to the right.

  Args:
    header: Column titles.
    rows: One text a cell.

  Returns:
    Lines without a final newline.
  """
  lines = [list(header), *[list(row) for row in rows]]
  widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
  lines.insert(1, ["-" * width for width in widths])

  def join(line: list[str]) -> str:
    cells = [line[0].ljust(widths[0])]
    cells += [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
    return "  ".join(cells).rstrip()

  return "\n".join(join(line) for line in lines)


def human(number: float) -> str:
  """A count in at most four digits and a unit: 987, 12.3k, 4.19M, 3.28B."""
  size, unit = abs(number), ""
  for unit in ("", "k", "M", "B", "T"):
    if size < 999.5 or unit == "T":
      break
    size /= 1000
  sign = "-" if number < 0 else ""
  digits = 0 if not unit else 2 if size < 9.995 else 1 if size < 99.95 else 0
  return f"{sign}{size:.{digits}f}{unit}"


def clock_text(seconds: float) -> str:
  """Seconds as 0:07, 12:34, 3:45:06 or 2d 03:45."""
  minutes, seconds = divmod(round(max(seconds, 0)), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f"{days}d {hours:02d}:{minutes:02d}"
  if hours:
    return f"{hours}:{minutes:02d}:{seconds:02d}"
  return f"{minutes}:{seconds:02d}"


def duration(seconds: float) -> str:
  """Seconds in their two largest units: 45 s, 3 min 10 s, 2 h 5 min."""
  left, found = round(max(seconds, 0)), []
  for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
    count, left = divmod(left, size)
    if count or found or unit == "s":
      found.append(f"{count} {unit}")
  return " ".join(found[:2])
